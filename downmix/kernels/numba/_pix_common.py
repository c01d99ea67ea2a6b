"""What both layouts of PiX share: which reduction a group gets, and who wins a maximum."""

from numba import njit

# What a group is reduced to: as its probability says, always the maximum, always the mean, or a blend of both.
BY_THRESHOLD, PICK, MIX, BLEND = range(4)


@njit(inline="always")
def larger(top, value):
    # A NaN beats everything, and stays.
    return value if (value > top or value != value) else top


@njit(inline="always")
def beats(value, top):
    # As above, but of equals, or of NaNs, the first wins.
    return value > top or (value != value and top == top)


@njit(inline="always")
def picks(mode, probability, threshold):
    return mode == PICK or (mode == BY_THRESHOLD and probability < threshold)
