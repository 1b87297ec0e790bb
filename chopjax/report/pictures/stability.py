"""How far the rankings depend on the calibration rows: agreement of two halves of them, by axis."""

import functools
from collections.abc import Mapping

from matplotlib.figure import Figure

from chopjax.report.canvas import Palette, Picture, Spot
from chopjax.report.pictures import widths
from chopjax.report.run import Run
from chopjax.score.stability import THRESHOLD


def picture(run: Run) -> Picture | None:
    """The agreement by axis, if a run has scores of two halves."""
    found = widths.stability(run)
    if not found:
        return None
    reason = (
        f"Each half of the calibration rows ranks by itself; below {THRESHOLD} a ranking depends on which rows were "
        "read, and more of them would help."
    )
    height = 1.0 + 0.36 * len(found)
    return Picture("score_stability", reason, describe(found), height, functools.partial(_paint, found))


def describe(found: Mapping[str, float]) -> str:
    """The picture in words."""
    said = ", ".join(f"{widths.TITLES[axis]} {value:.3f}" for axis, value in found.items())
    return f"Rank correlation between the scores of two halves of the calibration rows: {said}."


def _paint(found: Mapping[str, float], figure: Figure, palette: Palette) -> list[Spot]:
    axes = figure.add_subplot()
    for place, value in enumerate(found.values()):
        steady = value >= THRESHOLD
        colour = palette.first if steady else palette.second
        axes.barh(place, max(value, 0), height=0.55, color=colour if steady else "none", edgecolor=colour)
        box = {"facecolor": palette.card, "edgecolor": "none", "pad": 1}  # over the line of the threshold
        where = (max(value, 0), place)
        axes.annotate(f"{value:.3f}", where, (5, 0), textcoords="offset points", va="center", bbox=box)
    axes.axvline(THRESHOLD, color=palette.ink, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
    axes.set_xlim(0, 1.16)
    axes.set_xticks([0, 0.5, THRESHOLD, 1], ["0", "0.5", f"{THRESHOLD}", "1"])
    axes.set_yticks(range(len(found)), [widths.TITLES[axis] for axis in found])
    axes.invert_yaxis()
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title("Split-half rank correlation")
    return []
