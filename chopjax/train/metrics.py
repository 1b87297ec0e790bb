"""What a run measures: `metrics.jsonl`, one JSON object a line."""

import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any, Protocol

from chopjax import files, paths, records, temporary
from chopjax.errors import UserError


class Tracker(Protocol):
    """Something else that wants to see every line: TensorBoard, a web service."""

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Takes the values of one step."""

    def close(self) -> None:
        """Writes out what is left."""


class MetricsWriter:
    """Appends to `WORKDIR/metrics.jsonl`, so that each step occurs in it exactly once, whenever the run was killed.

    A line reaches the disk before `write` returns. Write the line of a step before its checkpoint is saved: then a run
    that resumes at that step finds it, and nothing after it.

    Args:
        workdir: folder of the run.
        resumed_at: step of the checkpoint that the run goes on from; lines of later steps are dropped, and so is a
            last line that was cut short. None for a run that starts anew: all lines are dropped.
        writer: whether this process writes at all; true for one process only.
        trackers: see every line too; closed with the writer.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        resumed_at: int | None = None,
        writer: bool = True,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._path = paths.make(workdir) / "metrics.jsonl"
        self._trackers = list(trackers) if writer else []
        self._file: IO[str] | _Object | None = None
        self._last = -1
        if writer:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            keep_until(self._path, -1 if resumed_at is None else resumed_at)
            self._last = max((line["step"] for line in read(self._path)), default=-1)
            self._open()

    def _open(self) -> None:
        """Opens the file for as long as the run."""
        remote = paths.is_remote(self._path)
        self._file = _Object(self._path) if remote else open(self._path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line.

        Args:
            step: optimizer steps done; must grow from line to line.
            values: numbers, arrays of one element, or None. What is not finite becomes null, which JSON can say.

        Raises:
            ValueError: `step` was written before.
        """
        if self._file is None:
            return
        if step <= self._last:
            raise ValueError(f"metrics of step {step} come after those of step {self._last}")
        self._last = step
        plain = _plain(values)
        self._file.write(_line(step, plain))
        self._file.flush()
        if not isinstance(self._file, _Object):
            os.fsync(self._file.fileno())
        for tracker in self._trackers:
            tracker.write(step, plain)

    def amend(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds values to the last line, if it is of this step; otherwise appends a line, as `write` does.

        Raises:
            ValueError: a later step was written before.
        """
        if self._file is None or step != self._last:
            self.write(step, values)
            return
        self.settle()
        *before, last = read(self._path)
        plain = {**last, **_plain(values)}
        text = "".join(json.dumps(line) + "\n" for line in before) + _line(step, plain)
        self._file.close()
        files.write_text(self._path, text)
        self._open()
        for tracker in self._trackers:
            tracker.write(step, _plain(values))

    def settle(self) -> None:
        """Returns when all lines are where they will be found; to be called before a checkpoint is saved.

        On a disk they are already. In a store, where a file cannot grow, it is written anew, and so not for every line.
        """
        if isinstance(self._file, _Object):
            self._file.put()

    def close(self) -> None:
        """Closes the file and the trackers."""
        if self._file is not None:
            self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Object:
    """An object in a store that grows: written anew as often as takes a small share of the time."""

    def __init__(self, path: pathlib.Path, share: float = 0.02) -> None:
        self._path, self._share = path, share
        self._text = path.read_text(encoding="utf-8") if path.exists() else ""
        self._put, self._next = self._text, 0.0

    def write(self, text: str) -> None:
        self._text += text

    def flush(self) -> None:
        if time.monotonic() >= self._next:
            self.put()

    def put(self) -> None:
        if self._put != self._text:
            began = time.monotonic()
            files.write_text(self._path, self._text)
            self._put, took = self._text, time.monotonic() - began
            self._next = time.monotonic() + took / self._share

    def close(self) -> None:
        self.put()


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; none if there is no file. A last line that a killed run left half is skipped.

    Raises:
        UserError: another line is not a JSON object of numbers, a step among them.
    """
    path = paths.make(path)
    *whole, _ = path.read_bytes().decode("utf-8", "replace").split("\n") if path.exists() else [""]
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(whole, 1):
        if not text.strip():
            continue
        where, fix = f"{path}: line {number}", "delete the line"
        line = records.parse_object(text, where, fix)
        records.shaped(line, _Step, where, fix, extra=True)
        if wrong := next((name for name, value in line.items() if not _is_figure(value)), None):
            raise UserError(f"{where}: {wrong!r:.80} is not a number; {fix}")
        lines.append(line)
    return lines


@dataclasses.dataclass(frozen=True)
class _Step:
    """What every line has."""

    step: records.Count


def _is_figure(value: Any) -> bool:
    whole = type(value) is int and abs(value) <= records.MOST
    return value is None or whole or (type(value) is float and math.isfinite(value))


def keep_until(path: str | os.PathLike[str], step: int) -> None:
    """Drops, atomically, the lines of later steps, repeated steps and a line that was cut short."""
    path = paths.make(path)
    temporary.clear(path)
    if not path.exists():
        return
    kept: list[str] = []
    last = -1
    for line in read(path):
        if last < line["step"] <= step:
            kept.append(json.dumps(line) + "\n")
            last = line["step"]
    text = "".join(kept)
    if text.encode("utf-8") != path.read_bytes():  # of which what was cut short may be no text
        files.write_text(path, text)


def _line(step: int, values: Mapping[str, Any]) -> str:
    return json.dumps({"step": step, **values}, allow_nan=False) + "\n"


def _plain(values: Mapping[str, Any]) -> dict[str, float | int | None]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: Any) -> float | int | None:
    """A Python number: integers stay integers, arrays of one element become what they hold."""
    plain = value.item() if hasattr(value, "item") else value
    if plain is None or isinstance(plain, int):
        return plain
    return float(plain) if math.isfinite(float(plain)) else None
