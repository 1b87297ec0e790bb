"""Budgets as limits on figures: who meets them, and what to say when nobody does."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Num

from chopjax.errors import UserError
from chopjax.search.config import SearchConfig
from chopjax.search.roofline import chip_named, memory

Figures = Mapping[str, Num[np.ndarray, " candidates"]]


@dataclasses.dataclass(frozen=True)
class Limit:
    """A closed interval in which a figure must lie.

    Attributes:
        field: the config's field that it comes from.
        figure: the name of the figure.
        low: its lower end, 0 where there is none.
        high: its upper end.
        said: how it was given.
    """

    field: str
    figure: str
    low: float
    high: float
    said: str


def limits(config: SearchConfig, source: Mapping[str, float]) -> tuple[Limit, ...]:
    """The limits of a config, the primary one first, the chip's memory last.

    Args:
        source: the source's own figures, of which budgets may be shares.
    """
    found = []
    for name, budget in config.budgets.items():
        scale = source[name] if budget.share else 1.0
        least = (1 - config.tolerance) * budget.high if name == config.primary else 0.0
        low = least if budget.low is None else budget.low
        found.append(Limit(name, name, low * scale, budget.high * scale, budget.said))
    if config.chip:
        room = memory(chip_named(config.chip), config.chips)
        found.append(Limit("chip", "bytes", 0.0, room, f"{config.chips} x {config.chip}"))
    return tuple(found)


def feasible(figures: Figures, limits: Sequence[Limit]) -> Bool[np.ndarray, " candidates"]:
    """Which candidates lie within all limits."""
    rows = [(figures[limit.figure] >= limit.low) & (figures[limit.figure] <= limit.high) for limit in limits]
    return np.all(rows, axis=0)


def excess(figures: Figures, limits: Sequence[Limit]) -> Float[np.ndarray, "limits candidates"]:
    """How far each candidate lies outside each limit, as a share of the nearer end; 0 within."""
    rows = []
    for limit in limits:
        figure = figures[limit.figure]
        over = np.maximum(figure / limit.high - 1, 0) * (figure > limit.high)
        under = (1 - figure / limit.low) * (figure < limit.low) if limit.low else 0.0
        rows.append(np.maximum(over, under))
    return np.stack(rows)


class Nearest:
    """Remembers, over chunks of candidates of which none is feasible, the one that comes closest.

    Closest is the one whose worst excess is least, and among equals the sum of its excesses. Tightest is the limit
    that the fewest candidates meet, and among equals the one that the closest candidate exceeds most.
    """

    def __init__(self, limits: Sequence[Limit]) -> None:
        self.limits = limits
        self.seen = 0
        self.met = np.zeros(len(limits), np.int64)
        self.distance = (math.inf, math.inf)
        self.outside = np.zeros(len(limits))
        self.sizes: dict[str, int] = {}
        self.figures: dict[str, float] = {}

    def add(self, sizes: Mapping[str, np.ndarray], figures: Figures, excess: Float[np.ndarray, "limits n"]) -> None:
        """Takes in a chunk of candidates with their `excess`."""
        self.seen += excess.shape[1]
        self.met += (excess == 0).sum(axis=1)
        if not excess.shape[1]:
            return
        worst, total = excess.max(axis=0), excess.sum(axis=0)
        best = int(np.lexsort((total, worst))[0])
        if (worst[best], total[best]) < self.distance:
            self.distance, self.outside = (worst[best], total[best]), excess[:, best]
            self.sizes = {axis: int(array[best]) for axis, array in sizes.items()}
            self.figures = {name: array[best].item() for name, array in figures.items()}

    def error(self) -> UserError:
        """The error that says which budget is tightest and who comes closest."""
        order = np.lexsort((-self.outside, self.met))
        tight = self.limits[order[0]]
        figure = self.figures[tight.figure]
        sizes = ", ".join(f"{axis} {size}" for axis, size in self.sizes.items())
        misses = ", ".join(_miss(limit, self.figures) for limit in _outside(self.limits, self.outside))
        window = f"{_said(tight.figure, tight.low)} to " if tight.low else "at most "
        others = ", and all budgets together by none" if len(self.limits) > 1 else ""
        if figure < tight.low:
            mend = "give less, raise search.tolerance, give a window LOW..HIGH, or finer steps with search.multiple"
        else:
            more = "raise search.chips or lower search.context" if tight.field == "chip" else "give more"
            mend = f"{more}, or allow smaller sizes with search.least_width, search.least_depth or listed choices"
        return UserError(
            f"search.{tight.field} = {tight.said} ({window}{_said(tight.figure, tight.high)}) is met by "
            f"{self.met[order[0]]:,} of {self.seen:,} candidates{others}; nearest: {sizes}, with {misses}; {mend}"
        )


def _outside(limits: Sequence[Limit], outside: Float[np.ndarray, " limits"]) -> Iterable[Limit]:
    return (limit for limit, share in zip(limits, outside, strict=True) if share > 0)


def _miss(limit: Limit, figures: Mapping[str, float]) -> str:
    figure = figures[limit.figure]
    side = "under" if figure < limit.low else "over"
    return f"{limit.figure} {_said(limit.figure, figure)}, {side} search.{limit.field}"


def _said(figure: str, value: float) -> str:
    """A figure with its unit, in four digits."""
    if figure in ("latency", "prefill"):
        return f"{value:.4g} ms"
    for factor, letter in ((1e12, "T"), (1e9, "B" if figure in _COUNTS else "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.4g}{letter}" + _UNITS.get(figure, "")
    return f"{value:.4g}{_UNITS.get(figure, '')}"


_COUNTS = ("params", "non_embedding_params")
_UNITS = {"bytes": "B", "kv_cache": "B", "flops": "FLOPs"}
