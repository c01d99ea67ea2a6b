from collections import Counter
from itertools import pairwise

import pytest

from downmix.tools._timing import interleave


@pytest.mark.parametrize("count", [2, 5, 6])
def test_each_call_follows_each_other_equally_often(count: int) -> None:
    called: list[int] = []
    calls = {str(i): lambda i=i: called.append(i) for i in range(count)}
    times = interleave(calls, rounds=2 * count, warmup=0)
    assert [len(ms) for ms in times.values()] == [2 * count] * count
    rounds = [called[i : i + count] for i in range(0, len(called), count)]
    assert all(sorted(order) == list(range(count)) for order in rounds)
    follows = Counter(pair for order in rounds for pair in pairwise(order))
    assert follows == {(a, b): 2 for a in range(count) for b in range(count) if a != b}
