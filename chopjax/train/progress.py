"""The line that a person watches: loss, tokens a second, MFU, time left."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import rich.console
import rich.progress


class Progress:
    """A live line on a terminal; elsewhere, as in a log file, a plain line every few seconds.

    Args:
        total: steps of the run.
        done: steps done before, where a run resumes.
        shown: whether this process shows anything; true for one process only.
        console: where to; standard output by default.
        every: seconds between plain lines.
        clock: seconds, rising.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        *,
        shown: bool = True,
        console: rich.console.Console | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._every, self._clock, self._shown = total, every, clock, shown
        self._console = console or rich.console.Console()
        self._first: tuple[int, float] | None = None
        self._said = float("-inf")
        self._live: rich.progress.Progress | None = None
        if shown and self._console.is_terminal:
            self._live = rich.progress.Progress(
                rich.progress.BarColumn(bar_width=20),
                rich.progress.TextColumn("{task.description}"),
                console=self._console,
            )
            self._task = self._live.add_task(f"step {done}/{total}", total=total, completed=done)
            self._live.start()

    def update(self, step: int, values: Mapping[str, Any]) -> None:
        """Shows a step.

        Args:
            step: optimizer steps done.
            values: of these, `loss`, `tokens_per_second` and `mfu` (a share of 1), or where that is not known `tflops`,
                are shown if there; the latter two with the student's and the teacher's parts.
        """
        now = self._clock()
        self._first = self._first or (step, now)  # the time before holds the compilation
        line = self._line(step, values, now)
        if self._live is not None:
            self._live.update(self._task, completed=step, description=line)
        elif self._shown and (now - self._said >= self._every or step >= self._total):
            self.say(line)
            self._said = now

    def say(self, line: str) -> None:
        """Prints a line of its own, above the live one."""
        if self._shown:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leaves the last state of the live line standing."""
        if self._live is not None:
            self._live.stop()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _line(self, step: int, values: Mapping[str, Any], now: float) -> str:
        parts = [f"step {step}/{self._total}"]
        if values.get("loss") is not None:
            parts.append(f"loss {float(values['loss']):.4f}")
        if values.get("tokens_per_second") is not None:
            parts.append(f"{_short(float(values['tokens_per_second']))} tokens/s")
        if values.get("mfu") is not None:
            parts.append(f"MFU {_share(values['mfu'])} %{_parts(values, 'mfu', _share)}")
        elif values.get("tflops") is not None:
            parts.append(f"{_significant(values['tflops'])} TFLOP/s a device{_parts(values, 'tflops', _significant)}")
        assert self._first is not None
        since, began = self._first
        if since < step < self._total:
            parts.append(f"{_duration((now - began) / (step - since) * (self._total - step))} left")
        return "  ".join(parts)


def _parts(values: Mapping[str, Any], name: str, written: Callable[[Any], str]) -> str:
    """` (student 25.0, teacher 16.2)`, or nothing where there is no teacher."""
    parts = {part: values.get(f"{name}_{part}") for part in ("student", "teacher")}
    said = ", ".join(f"{part} {written(value)}" for part, value in parts.items() if value is not None)
    return f" ({said})" if said else ""


def _share(value: Any) -> str:
    return f"{100 * float(value):.1f}"


def _significant(value: Any) -> str:
    return f"{float(value):.3g}"


def _short(number: float) -> str:
    """Three significant digits: `12.3k`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _duration(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
