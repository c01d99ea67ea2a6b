import signal

import pytest

from downmix.train.signals import Signals

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("first", BOTH)
def test_the_second_signal_of_any_kind_ends_the_process(first: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in BOTH]
    with Signals() as signals:
        signal.raise_signal(first)
        assert signals.received == first
        assert [signal.getsignal(each) for each in BOTH] == [signal.SIG_DFL, signal.SIG_DFL]
    assert [signal.getsignal(each) for each in BOTH] == before
