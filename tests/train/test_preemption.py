"""SIGTERM in one process: an exception at once, or a note where a step has to end first."""

import os
import signal

import pytest

from chopjax.errors import Preempted
from chopjax.train import preemption


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_is_raised_where_the_program_is() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted), preemption.caught():
        assert not preemption.agreed()
        terminate()
        pytest.fail("went on")
    assert signal.getsignal(signal.SIGTERM) is before
    assert not preemption.agreed()


def test_it_waits_under_held() -> None:
    went_on = False
    with preemption.caught(), pytest.raises(Preempted), preemption.held():
        assert not preemption.agreed()
        with preemption.held():
            terminate()
        went_on = preemption.agreed() and preemption.agreed()
    assert went_on


def test_another_exception_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="other"), preemption.caught(), preemption.held():
        terminate()
        raise ValueError("other")


def test_no_mistake_of_the_program() -> None:
    assert not issubclass(Preempted, Exception)
