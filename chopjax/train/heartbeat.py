"""Which process hangs: each writes now and then how far it is, and each looks when no step ends for long."""

import contextlib
import dataclasses
import faulthandler
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping

from chopjax import files, paths, records, temporary

FOLDER = "heartbeats"
EVERY = 10.0  # seconds between two beats
MISSED = 6  # beats without which a process counts as one that does not answer
COMPILING = 1800.0  # seconds that the first step may take besides


@dataclasses.dataclass(frozen=True)
class Beat:
    """How far a process is.

    Attributes:
        process: its index.
        host: name of its machine.
        begun: the last step that it gave to its devices.
        ended: the last step that it saw end.
        time: when it wrote this, seconds since 1970.
    """

    process: records.Count
    host: str
    begun: records.Count
    ended: records.Count
    time: records.NotNegative


class Heartbeat:
    """A thread that writes `WORKDIR/heartbeats/PROCESS.json`, and says which processes lag when no step ends.

    Devices of all processes take each step together, so all of them stop where one does. The one at fault has begun
    fewer steps than the others (its host is stuck: reading rows, in the garbage collector, swapping), or writes no more
    (its host is gone). Stacks of all Python threads go to `PROCESS.stacks.txt` of each process that waits. Use it as a
    context manager, or `close` it.

    Args:
        workdir: folder of the run, on storage that all processes share.
        done: steps done before.
        process: index of this process.
        processes: number of all.
        limit: seconds without a step that ends, after which the others are looked at; 0 for never. The first step may
            take half an hour longer, in which it is compiled.
        end: whether this process ends then, with status 1, for whatever started it to start it again.
        say: prints the line; called in the process of lowest index that does not lag, and in those that do and can.
        every: seconds between beats.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        done: int = 0,
        *,
        process: int = 0,
        processes: int = 1,
        limit: float = 0.0,
        end: bool = False,
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
        every: float = EVERY,
    ) -> None:
        self._folder = paths.make(workdir) / FOLDER
        self._process, self._processes, self._limit, self._end, self._say = process, processes, limit, end, say
        self._every = min(every, limit / 4) if limit else every
        self._host, self._begun, self._ended = socket.gethostname(), done, done
        self._moved, self._extra, self._said = time.monotonic(), COMPILING, False
        self._closed = threading.Event()
        if process == 0:
            _remove_others(self._folder, processes)
        self._beat()
        self._thread = threading.Thread(target=self._live, name="heartbeat", daemon=True)
        self._thread.start()

    def begun(self, step: int) -> None:
        """A step was given to the devices."""
        self._begun = step

    def ended(self, step: int) -> None:
        """All steps up to this one were seen to have ended."""
        if step > self._ended:
            self._ended, self._extra = step, 0.0
            self.alive()

    def alive(self) -> None:
        """Something else than a step went on: an evaluation, a save."""
        self._moved, self._said = time.monotonic(), False

    def close(self) -> None:
        """Ends the thread and takes the file away."""
        self._closed.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # of a folder in which files of others, or stacks, are there still
            _file(self._folder, self._process).unlink(missing_ok=True)
            if not paths.is_remote(self._folder):  # a store has no folders
                self._folder.rmdir()

    def __enter__(self) -> "Heartbeat":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _live(self) -> None:
        while not self._closed.wait(self._every):
            self._beat()
            waited = time.monotonic() - self._moved
            if self._limit and not self._said and waited > self._limit + self._extra:
                self._said = True
                self._report(waited)

    def _beat(self) -> None:
        beat = Beat(self._process, self._host, self._begun, self._ended, time.time())
        with contextlib.suppress(Exception):  # a full or slow disk is no reason to end a run here
            files.write_json(_file(self._folder, self._process), dataclasses.asdict(beat))

    def _report(self, waited: float) -> None:
        beats = {index: read(self._folder, index) for index in range(self._processes)}
        lagging = laggards(beats, time.time(), MISSED * self._every)
        waiting = [index for index in beats if index not in lagging]
        if self._process in lagging or self._process == min(waiting, default=0):
            which = "; ".join(lagging.values()) or "all processes wait, so the devices or what connects them hang"
            self._say(f"no step has ended for {waited:.0f} s, since step {self._ended}: {which}")
        stacks = self._folder / f"{self._process}.stacks.txt"
        with contextlib.suppress(Exception), contextlib.ExitStack() as stack:
            # Stacks are written to a file of the system, which none in a store is.
            remote = paths.is_remote(stacks)
            file = sys.stderr if remote else stack.enter_context(open(stacks, "w", encoding="utf-8"))
            faulthandler.dump_traceback(file, all_threads=True)
        if self._end:
            # One that lags ends last: others would see it go before they have said whom they wait for.
            self._closed.wait(MISSED * self._every if self._process in lagging else 0)
            os._exit(1)


def read(folder: pathlib.Path, process: int) -> Beat | None:
    """The last beat of a process; None if it has written none."""
    try:
        file = _file(folder, process)
        found = records.read_object(file, "remove it")
        return None if found is None else records.shaped(found, Beat, str(file), "remove it")
    except Exception:
        return None


def laggards(beats: Mapping[int, Beat | None], now: float, silent: float) -> dict[int, str]:
    """Which processes the others wait for, and in words why; none where all are equally far.

    Args:
        beats: the last beat of each.
        now: seconds since 1970.
        silent: seconds after which one that did not write counts as gone.
    """
    gone = {index: "it has written no heartbeat" for index, beat in beats.items() if beat is None}
    known = [beat for beat in beats.values() if beat is not None]
    for beat in known:
        if now - beat.time > silent:
            gone[beat.process] = f"{_name(beat)} is silent since {now - beat.time:.0f} s, at step {beat.begun}"
    if gone:
        return {index: said if beats[index] else f"process {index}: {said}" for index, said in sorted(gone.items())}
    furthest = max(beat.begun for beat in known)
    behind = [beat for beat in known if beat.begun < furthest]
    return {
        beat.process: f"{_name(beat)} has begun step {beat.begun}, others {furthest}"
        for beat in sorted(behind, key=lambda beat: beat.process)
    }


def _name(beat: Beat) -> str:
    return f"process {beat.process} on {beat.host}"


def _file(folder: pathlib.Path, process: int) -> pathlib.Path:
    return folder / f"{process}.json"


def _remove_others(folder: pathlib.Path, processes: int) -> None:
    """Removes what killed processes left, and the beats of processes of an earlier start that there are no more."""
    temporary.clear_inside(folder, r"\d+\.json")
    for file in folder.glob("*.json") if folder.is_dir() else ():
        if file.stem.isdigit() and int(file.stem) >= processes:
            file.unlink(missing_ok=True)
