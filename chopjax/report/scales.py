"""Value scales and reference lines, drawn alike in all pictures."""

import math
from collections.abc import Callable, Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, Formatter, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from chopjax.report import words
from chopjax.report.canvas import Palette


def values(axes: Axes, ticks: int = 6, say: Callable[[float], str] = words.plain) -> None:
    """A linear scale of values with light lines across."""
    _lines(axes)
    axes.yaxis.set_major_locator(MaxNLocator(ticks))
    axes.yaxis.set_major_formatter(_Apart() if say is words.plain else FuncFormatter(lambda value, _: say(value)))


class _Apart(Formatter):
    """Numbers of as many digits as tell the ticks from each other: a narrow range of losses needs more than three."""

    def __call__(self, value: float, position: int | None = None) -> str:
        return words.plain(value)

    def format_ticks(self, values: Iterable[float]) -> list[str]:
        told = [float(value) for value in values]
        digits = words.apart(told)
        return [words.plain(value, digits) for value in told]


def logarithmic(axes: Axes, low: float, high: float, say: Callable[[float], str] = words.plain) -> None:
    """The same on a logarithmic scale from `low`, above 0, to `high`."""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    _lines(axes)
    _ticked(axes.yaxis, low, high, say)


def logarithmic_below(axes: Axes, low: float, high: float) -> None:
    """A logarithmic scale of what lies along the bottom."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    _ticked(axes.xaxis, low, high, words.plain)


def reference(axes: Axes, label: str, value: float, palette: Palette, side: str = "right") -> None:
    """A dotted line across at `value`, with its label and number above one end of it."""
    axes.axhline(value, color=palette.ink, linewidth=1, linestyle=(0, (2, 3)), zorder=0.9)
    axes.annotate(
        f"{label} {words.significant(value)}",
        (1 if side == "right" else 0, value),
        (0 if side == "right" else 6, 4),  # clear of the numbers of the axis
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha=side,
    )


def ticks(low: float, high: float) -> list[float]:
    """Round values between `low` and `high`, 3 to 8 of them, for a logarithmic scale."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in (
        (1,),
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 5, 7),
        tuple(np.arange(1, 10, 0.5)),
        tuple(np.arange(1, 10, 0.1)),
    ):
        inside = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(inside) >= 3:
            return inside[:: math.ceil(len(inside) / 8)]
    return list(np.linspace(low, high, 4))


def said(value: float) -> str:
    """A value to three digits, or that it is none."""
    return words.significant(value) if math.isfinite(value) else "not finite"


def _ticked(axis: Axis, low: float, high: float, say: Callable[[float], str]) -> None:
    axis.set_major_locator(FixedLocator(ticks(low, high)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _lines(axes: Axes) -> None:
    axes.grid(True, axis="y")
    axes.spines["left"].set_visible(False)
