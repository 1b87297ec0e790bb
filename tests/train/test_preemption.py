"""SIGTERM in one process: an exception at once, or a note where a step has to end first."""

import os
import signal
from collections.abc import Iterator

import pytest

from chopjax.errors import Preempted
from chopjax.train import preemption


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """Puts back what SIGTERM does to the tests themselves."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_is_raised_where_the_program_is() -> None:
    with pytest.raises(Preempted), preemption.caught():
        assert not preemption.agreed()
        terminate()
        pytest.fail("went on")
    assert not preemption.agreed()


def test_a_second_one_breaks_nothing_off() -> None:
    tidied = []
    with pytest.raises(Preempted), preemption.caught():
        try:
            terminate()
        finally:
            terminate()
            tidied.append("while it ends")
    terminate()
    assert tidied == ["while it ends"]


def test_it_waits_under_held() -> None:
    went_on = False
    with preemption.caught(), pytest.raises(Preempted), preemption.held():
        assert not preemption.agreed()
        with preemption.held():
            terminate()
        went_on = preemption.agreed() and preemption.agreed()
    assert went_on


def test_the_keyboard_waits_too_where_an_exception_would_become_another() -> None:
    before, went_on = signal.getsignal(signal.SIGINT), False
    with pytest.raises(KeyboardInterrupt), preemption.unbroken():
        os.kill(os.getpid(), signal.SIGINT)
        went_on = True
    assert went_on and signal.getsignal(signal.SIGINT) is before


def test_held_says_only_what_it_held() -> None:
    with preemption.caught():
        with pytest.raises(Preempted):
            terminate()
        with preemption.held():
            pass


def test_another_exception_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="other"), preemption.caught(), preemption.held():
        terminate()
        raise ValueError("other")


def test_no_mistake_of_the_program() -> None:
    assert not issubclass(Preempted, Exception)
