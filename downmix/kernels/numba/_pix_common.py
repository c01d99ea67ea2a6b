"""What both layouts of PiX share: which reduction a group gets."""

# As its probability says, always the maximum, always the mean, or a blend of both.
BY_THRESHOLD, PICK, MIX, BLEND = range(4)
