"""Goodput: the share of a run's time that went into steps which it kept, however often it was cut off."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping

from chopjax import files, paths, records
from chopjax.errors import UserError

FILE = "goodput.json"


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a run had come to at a step that it saved.

    Attributes:
        seconds: spent in steps up to this one, those of restarts that were lost not counted.
        skipped: steps among them whose gradients were not finite.
    """

    seconds: records.NotNegative = 0.0
    skipped: records.Count = 0


class Goodput:
    """Seconds in steps that are kept, over seconds since training first began.

    What is no such time: compiling and the first step of each start, evaluating, saving, loading, being cut off, and
    steps that were lost and taken again. The record `goodput.json` holds when training first began and what it had come
    to at each saved step, so that a run that goes on from a step counts from there.

    Args:
        folder: of the metrics.
        done: steps done before, those of the checkpoint that the run goes on from; 0 for none.
        writer: whether this process writes the record; true for one process only.
        clock: seconds since 1970, the same for all starts.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        done: int = 0,
        *,
        writer: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._writer, self._clock = paths.make(folder) / FILE, writer, clock
        self._began, self._saved = _read(self._path) or (clock(), {})
        self._saved = {step: saved for step, saved in self._saved.items() if step <= done}
        self.restored = self._saved[max(self._saved)] if self._saved else Saved()
        self._seconds = self.restored.seconds
        self._write()

    def spent(self, seconds: float) -> None:
        """Takes note of time spent in steps."""
        self._seconds += seconds

    @property
    def share(self) -> float:
        """The goodput until now, from 0 to 1."""
        whole = self._clock() - self._began
        return min(1.0, self._seconds / whole) if whole > 0 else 0.0

    def save(self, step: int, skipped: int) -> None:
        """Puts down what the run has come to. To be called before the checkpoint of this step is saved.

        Args:
            step: steps done.
            skipped: how many of them were skipped.
        """
        self._saved[step] = Saved(self._seconds, skipped)
        self._write()

    def _write(self) -> None:
        if self._writer:
            saved = {str(step): dataclasses.asdict(saved) for step, saved in self._saved.items()}
            files.write_json(self._path, {"began": self._began, "saved": saved})


def _read(path: pathlib.Path) -> tuple[float, dict[int, Saved]] | None:
    """The record; None where there is none, or none that can be read: figures alone depend on it."""
    try:
        found = records.read_object(path, "remove it")
        record = None if found is None else records.shaped(found, _Record, str(path), "remove it")
        return None if record is None else (record.began, {int(step): saved for step, saved in record.saved.items()})
    except (OSError, UserError, ValueError):
        return None


@dataclasses.dataclass(frozen=True)
class _Record:
    """What `goodput.json` holds: when training began, and what it had come to by step."""

    began: records.NotNegative
    saved: Mapping[str, Saved]
