"""A process that is gone is named by the others, whether it beats no more, never did, or took the store with it."""

import json
import queue
import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from chopjax.sharding.peers import Peers

EVERY = 0.02
HERE = socket.gethostname()


class Store:
    """What JAX's client is to a process: keys and values that all processes share."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.reached = threading.Event()
        self.reached.set()
        self.refuses = False

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        self._reach()
        if key in self.values and not allow_overwrite:
            raise RuntimeError("ALREADY_EXISTS")
        self.values[key] = value

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        self._reach()
        return [(name, value) for name, value in self.values.items() if name.startswith(key)]

    def _reach(self) -> None:
        self.reached.wait()
        if self.refuses:
            raise RuntimeError("UNAVAILABLE")


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.reached.set()
    made.refuses = True


def beat(store: Store, process: int) -> None:
    """The last beat of a process."""
    store.values[f"chopjax/beats/{process}"] = json.dumps([7, f"host{process}"])


def plain(line: str) -> str:
    return re.sub(r"for \d+ s", "for N s", line)


def said(name: str) -> str:
    return (
        f"{name} is gone: no sign of life for N s; start all processes again, and the same command goes on from the "
        "newest checkpoint"
    )


def test_a_process_that_beats_no_more_ends_the_others(store: Store) -> None:
    beat(store, 1)
    lines: queue.Queue[str] = queue.Queue()
    running = [Peers(store, index, 3, silent=0.4, end=lines.put, every=EVERY) for index in (0, 2)]
    assert plain(lines.get(timeout=20)) == said("process 1 on host1")
    assert [plain(peers.gone(0)) for peers in running] == [said("process 1 on host1")] * 2


def test_a_process_that_never_beat_is_named_too(store: Store) -> None:
    assert plain(Peers(store, 0, 2, every=EVERY).gone()) == said("process 1")


def test_process_0_that_does_not_answer_is_named(store: Store) -> None:
    beat(store, 0)
    lines: queue.Queue[str] = queue.Queue()
    Peers(store, 1, 3, silent=0.4, end=lines.put, every=EVERY)
    while "chopjax/beats/1" not in store.values:
        time.sleep(EVERY)
    store.reached.clear()
    assert plain(lines.get(timeout=20)) in (said("process 0 on host0"), said("process 0"))


def test_process_0_that_has_ended_is_named_at_once(store: Store) -> None:
    store.refuses = True
    assert plain(Peers(store, 1, 3, silent=1e9, every=EVERY).gone()) == said("process 0")


def test_processes_that_answer_are_not_gone(store: Store) -> None:
    running = [Peers(store, index, 2, every=EVERY) for index in (0, 1)]
    assert running[0].gone(20 * EVERY) == ""
    running[1].leave()


def test_a_process_that_left_in_order_is_not_gone(store: Store) -> None:
    peers = Peers(store, 0, 2, every=EVERY)
    Peers(store, 1, 2, every=EVERY).leave()
    assert peers.gone(20 * EVERY) == ""


def test_the_error_that_a_process_ended_with_is_told(store: Store) -> None:
    peers = Peers(store, 0, 2, silent=1e9, every=EVERY)
    Peers(store, 1, 2, silent=1e9, every=EVERY).leave("error: the disk is full")
    assert peers.gone() == f"process 1 on {HERE} has ended (error: the disk is full)"
