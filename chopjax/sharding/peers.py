"""Which of several processes is gone: killed, stopped, or on a host that no longer answers.

Each process counts up a number of its own in the store of JAX's coordination service, which lives in process 0, and
reads those of the others. No clock is compared: a process is silent for as long as its number has not changed here. JAX
itself ends all processes by an abort, without naming one, from half of its heartbeat timeout on.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed

from chopjax.sharding import aborts

EVERY = 2.0  # seconds between two beats
MISSED = 3.5  # beats that a process that is gone has missed, once an exchange with it has failed
SILENT = 32.0  # seconds of silence after which the others end, if JAX has its default heartbeats of 100 s
WAIT = 20.0  # seconds to find out which process is gone, once an exchange has failed
_BEATS, _FOUND, _LEFT = "chopjax/beats/", "chopjax/gone/", "left"


class Peers:
    """Two threads of each process: one beats and reads the others' beats, one looks how long each has been silent.

    Args:
        client: of JAX's coordination service.
        process: index of this process.
        processes: number of all.
        silent: see `SILENT`.
        end: ends this process with a line; called in a thread.
        every: see `EVERY`.
    """

    def __init__(
        self,
        client: Any,
        process: int,
        processes: int,
        *,
        silent: float = SILENT,
        end: Callable[[str], None] | None = None,
        every: float = EVERY,
    ) -> None:
        self._client, self._process, self._silent, self._every = client, process, silent, every
        self._end, self._missed = end or _end, MISSED * every
        now = time.monotonic()
        self._beats = dict.fromkeys(range(processes), "")
        self._changed = dict.fromkeys(range(processes), now)
        self._names = {index: f"process {index}" for index in range(processes)}
        self._host = socket.gethostname()
        self._names[process] += f" on {self._host}"
        self._answered, self._refused, self._count = now, False, 0
        self._closed, self._found = threading.Event(), ""
        for work in (self._beat, self._look):
            threading.Thread(target=work, name="peers", daemon=True).start()

    def gone(self, wait: float = WAIT) -> str:
        """Which process is gone, after an exchange with others failed; empty if all still answer after a while."""
        until = time.monotonic() + wait
        self._exchange()  # JAX aborts very soon after process 0 has ended
        while not (line := self._found or self._line(self._missed)) and time.monotonic() < until:
            time.sleep(self._every / 10)
        self._closed.set()
        return line

    def without_coordinator(self) -> str:
        """The line for an abort of JAX because process 0, where its coordination service lives, no longer answers."""
        self._closed.set()
        return _said(self._names[0], time.monotonic() - self._answered)

    def leave(self, line: str = "") -> None:
        """Tells the others that this process ends: in order, or with the line of an error."""
        self._closed.set()
        if line:
            self._tell(f"{self._names[self._process]} has ended ({line})")
            return
        try:
            self._client.key_value_set(f"{_BEATS}{self._process}", _LEFT, allow_overwrite=True)
        except Exception:  # process 0 has ended before
            return

    def _tell(self, line: str) -> str:
        """Tells the others why all end; returns what was told first."""
        try:
            self._client.key_value_set(f"{_FOUND}line", line)
        except Exception:  # another process was first, or process 0 has ended before
            return self._found or line
        return line

    def _beat(self) -> None:
        while not self._closed.wait(self._every if self._count else 0):
            self._count += 1
            self._exchange()

    def _exchange(self) -> None:
        """Beats once, and reads the others' beats."""
        try:
            mine = json.dumps([self._count, self._host])
            self._client.key_value_set(f"{_BEATS}{self._process}", mine, allow_overwrite=True)
            beats = self._client.key_value_dir_get(_BEATS)
            found = self._client.key_value_dir_get(_FOUND)
        except Exception:  # process 0 is gone, or this process ends
            self._refused = True
            return
        now = time.monotonic()
        self._answered, self._refused = now, False
        for key, beat in beats:
            index = int(key.rpartition("/")[2])
            if beat != self._beats[index]:
                self._beats[index], self._changed[index] = beat, now
                if beat != _LEFT:
                    self._names[index] = f"process {index} on {json.loads(beat)[1]}"
        self._found = found[0][1] if found else ""

    def _look(self) -> None:
        seen = None
        while not self._closed.wait(self._every):
            seen = (seen or time.monotonic()) if self._found else None
            # Where another process found it, this one has time to find that an exchange failed, and to end by itself.
            line = self._found if seen and time.monotonic() - seen > 3 * self._missed else self._line(self._silent)
            if line and not self._closed.is_set():
                self._end(line)

    def _line(self, silent: float) -> str:
        """Names the process that has been silent longest, if for so long; tells the others."""
        now = time.monotonic()
        if self._process and (now - self._answered > silent or (self._refused and silent <= self._missed)):
            return _said(self._names[0], now - self._answered)  # nobody can be told, and nothing is known of others
        others = {
            index: now - changed
            for index, changed in self._changed.items()
            if index != self._process and self._beats[index] != _LEFT
        }
        index = max(others, key=others.__getitem__, default=-1)
        if index < 0 or others[index] <= silent:
            return ""
        return self._tell(_said(self._names[index], others[index]))


_watching: list[Peers] = []


def watch(silent: float = SILENT) -> None:
    """Watches the other processes from now on, where JAX joined several; see `Peers`."""
    state = distributed.global_state
    if _watching or state.client is None or state.num_processes == 1:
        return
    peers = Peers(state.client, state.process_id, state.num_processes, silent=silent)
    _watching.append(peers)
    if state.process_id and state.coordinator_address:
        aborts.report(state.coordinator_address, peers.without_coordinator, end)


def gone(error: BaseException) -> str:
    """Which process is gone, where that is what an exception comes of; otherwise empty."""
    while not isinstance(error, jax.errors.JaxRuntimeError):
        deeper = error.__cause__ or error.__context__
        if deeper is None:
            return ""
        error = deeper
    return _watching[0].gone() if _watching else ""


def leave(line: str = "") -> None:
    """Tells the others that this process ends: in order, or with the line of an error."""
    while _watching:
        _watching.pop().leave(line)


def end(line: str) -> None:
    """Ends this process with status 1. Not by an exit in order, which would wait for the process that is gone."""
    print(f"error: {line}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    if distributed.global_state.process_id == 0:
        time.sleep(MISSED * EVERY)  # with this process ends what tells the others
    os._exit(1)


_end = end


def _said(name: str, seconds: float) -> str:
    return (
        f"{name} is gone: no sign of life for {seconds:.0f} s; start all processes again, and the same command goes on "
        "from the newest checkpoint"
    )
