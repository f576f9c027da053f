import os
import signal
import time

import pytest

from bvit.interrupt import Interrupted, SignalWatch


def send(signum):
    os.kill(os.getpid(), signum)
    time.sleep(0)  # Python runs handlers between bytecodes


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_interrupts_at_once(signum, code):
    with pytest.raises(Interrupted) as stop, SignalWatch():
        send(signum)
    assert stop.value.exit_code == code
    assert not isinstance(stop.value, Exception)  # nobody's `except Exception` takes it


def test_while_held_it_is_noted_and_raised_at_the_end():
    noted = []
    with pytest.raises(Interrupted), SignalWatch() as watch, watch.held():
        send(signal.SIGTERM)
        noted.append(watch.received)
    assert noted == [signal.SIGTERM]


def test_released_within_held_raises_at_once_also_what_came_before():
    with pytest.raises(Interrupted), SignalWatch() as watch, watch.held(), watch.released():
        send(signal.SIGINT)
        pytest.fail("not reached")
    with pytest.raises(Interrupted), SignalWatch() as watch, watch.held():
        send(signal.SIGINT)
        with watch.released():
            pytest.fail("not reached")


def test_what_was_made_of_it_on_the_way_is_still_an_interruption():
    with pytest.raises(Interrupted) as stop, SignalWatch():
        try:
            send(signal.SIGTERM)
        finally:
            raise RuntimeError("half of a thing can't be closed")
    assert stop.value.exit_code == 143


def test_an_error_after_a_signal_that_was_only_noted_is_that_error():
    with pytest.raises(OSError), SignalWatch() as watch, watch.held():
        send(signal.SIGTERM)
        raise OSError("no space left")


def test_the_signals_are_given_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with SignalWatch():
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


class Finalized:
    def __del__(self):
        send(signal.SIGINT)


def test_one_that_was_raised_where_nothing_can_be_is_raised_again():
    with pytest.raises(Interrupted), SignalWatch():
        Finalized()
        time.sleep(5)
        pytest.fail("swallowed")
