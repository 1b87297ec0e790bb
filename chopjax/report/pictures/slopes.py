"""The order of the candidates before and after a short distillation, as lines from one rank to the other."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from chopjax.report import words
from chopjax.report.canvas import Look, Palette, Picture, Spot
from chopjax.report.pictures.search import differing, said, tried
from chopjax.report.records import Search
from chopjax.report.run import Run
from chopjax.score.stability import spearman

# Of more candidates, those that are best after healing are drawn.
MOST = 16


@dataclasses.dataclass(frozen=True)
class Slopes:
    """The candidates that were distilled, best first after it.

    Attributes:
        place: in the search's list.
        before, after: rank among all of which the loss is known, from 1.
        loss, distilled: the losses, nats a token.
        agreement: Spearman's rank correlation between the two orders.
        chosen: place of the one that was taken, or None.
    """

    place: Int[np.ndarray, "candidates"]
    before: Int[np.ndarray, "candidates"]
    after: Int[np.ndarray, "candidates"]
    loss: Float[np.ndarray, "candidates"]
    distilled: Float[np.ndarray, "candidates"]
    agreement: float
    chosen: int | None


def measured(search: Search) -> Slopes | None:
    """The candidates that have both losses, if there are two or more of them."""
    points = tried(search)
    both = np.flatnonzero((points.before > 0) & (points.after > 0))
    if len(both) < 2:
        return None
    agreement = spearman(points.loss[both], points.distilled[both])
    both = both[np.argsort(points.after[both])][:MOST]
    found = (points.before[both], points.after[both], points.loss[both], points.distilled[both])
    return Slopes(both, *found, agreement, search.chosen)


def picture(run: Run) -> Picture | None:
    """The slopes, if at least two candidates were distilled."""
    if run.search is None or (found := measured(run.search)) is None:
        return None
    reason = (
        "A short distillation shows which candidate heals best, which the loss before it does not always tell; "
        f"the two orders correlate with {found.agreement:.2f}."
    )
    height = 1.2 + 0.28 * len(found.place)
    paint = functools.partial(_paint, run.search, found)
    return Picture("rank_before_after", reason, describe(run.search, found), height, paint)


def describe(search: Search, found: Slopes) -> str:
    """The picture in words."""
    axes = differing(search.candidates)
    lines = [
        f"{said(search.candidates[place].sizes, axes)}: from {before} ({words.significant(loss)}) to {after} "
        f"({words.significant(healed)})"
        for place, before, after, loss, healed in _each(found)
    ]
    return f"Ranks by loss before healing, and after a short distillation. {'; '.join(lines)}."


def _each(found: Slopes) -> list[tuple[int, int, int, float, float]]:
    return list(zip(found.place, found.before, found.after, found.loss, found.distilled, strict=True))


def _paint(search: Search, found: Slopes, figure: Figure, palette: Palette) -> list[Spot]:
    axes = figure.add_subplot()
    names, spots = differing(search.candidates), []
    # Ranks before healing have gaps where a candidate was not distilled; heights have none.
    left = np.argsort(np.argsort(found.before))
    for right, (place, before, after, loss, healed) in enumerate(_each(found)):
        chosen = place == found.chosen
        colour = palette.second if chosen else palette.first
        y = (float(left[right]), float(right))
        look: Look = {"color": colour, "linewidth": 3 if chosen else 1.5, "marker": "o", "markersize": 5}
        axes.plot((0, 1), y, alpha=1 if chosen else 0.8, zorder=3 if chosen else 2, **look)
        sizes = said(search.candidates[place].sizes, names)
        weight = "bold" if chosen else "normal"
        ends = ((-1, y[0], before, loss, ""), (1, y[1], after, healed, ", chosen" if chosen else ""))
        for side, height, rank, value, note in ends:
            look = {"va": "center", "fontweight": weight, "color": colour if chosen else palette.ink}
            look["ha"] = "right" if side < 0 else "left"
            axes.text(0.5 + side * 0.54, height, str(rank), **look)
            axes.text(0.5 + side * 0.69, height, f"{words.significant(value, 4)}{note}", **look)
            reach = (-0.45, 0.05) if side < 0 else (0.95, 1.45)
            told = f"{sizes}: rank {before} → {after}, loss {words.significant(loss)} → {words.significant(healed)}"
            spots.append(Spot(axes, reach, (height - 0.5, height + 0.5), told))
    axes.set_xlim(-0.5, 1.5)
    axes.set_ylim(len(found.place) - 0.4, -0.6)
    axes.set_axis_off()
    axes.set_title("Rank by loss, before and after a short distillation", pad=26)
    for x, text in ((0, "by masks"), (1, "distilled, held out")):
        where: Look = {"ha": "center", "va": "bottom", "transform": axes.get_xaxis_transform()}
        axes.text(x, 1.0, text, color=palette.soft, **where)
    return spots
