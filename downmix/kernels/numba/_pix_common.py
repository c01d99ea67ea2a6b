"""What both layouts of PiX share: which reduction a group gets."""

from numba import njit

# What a group is reduced to: as its probability says, always the maximum, always the mean, or a blend of both.
BY_THRESHOLD, PICK, MIX, BLEND = range(4)


@njit(inline="always")
def picks(mode, probability, threshold):
    return mode == PICK or (mode == BY_THRESHOLD and probability < threshold)
