"""Size against loss of all candidates that were tried, with their frontier, the one that was taken, and the source."""

import functools
import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from chopjax.report import scales, words
from chopjax.report.canvas import Look, Palette, Picture, Spot
from chopjax.report.pictures.search import PARAMETERS, Tried, cost_label, cost_said, differing, said, tried
from chopjax.report.records import Search
from chopjax.report.run import Run

# The source is a point of the cloud unless its size would push the candidates together by more than this factor.
FARTHEST = 3
# More points than this are not told one by one.
MOST_TOLD = 500


def picture(run: Run) -> Picture | None:
    """The cloud, if any candidate has a size and a loss."""
    if run.search is None:
        return None
    points = tried(run.search)
    if not points.frontier.any():
        return None
    paint = functools.partial(_paint, run.search, points)
    return Picture("search_cloud", reason(run.search), describe(run.search, points), 4.0, paint)


def reason(search: Search) -> str:
    """What was searched, in one sentence, and why this picture."""
    parts = [f"{search.enumerated:,} sizes enumerated"] if search.enumerated is not None else []
    budget = ", ".join(f"{name} {limit}" for name, limit in search.budget.items())
    if search.feasible is not None:
        parts.append(f"{search.feasible:,} within the budget{f' ({budget})' if budget else ''}")
    parts.append(f"{len(search.candidates):,} tried by masks, without training")
    return f"{', '.join(parts)}; nothing that was tried lies below the line."


def describe(search: Search, points: Tried) -> str:
    """The picture in words."""
    places = np.flatnonzero(points.frontier)
    places = places[np.argsort(points.cost[places], kind="stable")]
    frontier = ", ".join(_point(search, points, place) for place in places[:8])
    text = f"Loss before healing against {cost_label(search.cost)}. On the frontier: {frontier}."
    if search.chosen is not None:
        text += f" Chosen: {_told(search, points, search.chosen)}."
    if math.isfinite(search.dense_loss):
        text += f" The source: {words.significant(search.dense_loss)}."
    return text


def _point(search: Search, points: Tried, place: int) -> str:
    return f"{words.significant(points.loss[place])} at {cost_said(search.cost, points.cost[place])}"


def _told(search: Search, points: Tried, place: int) -> str:
    sizes = said(search.candidates[place].sizes, differing(search.candidates))
    loss = words.significant(points.loss[place]) if math.isfinite(points.loss[place]) else "no loss"
    healed = points.distilled[place]
    after = f", {words.significant(healed)} after distillation" if math.isfinite(healed) else ""
    return f"{sizes}; {cost_said(search.cost, points.cost[place])}; loss {loss}{after}"


def _paint(search: Search, points: Tried, figure: Figure, palette: Palette) -> list[Spot]:
    axes = figure.add_subplot()
    known = np.isfinite(points.cost) & np.isfinite(points.loss)
    others = known & ~points.frontier
    axes.scatter(points.cost[others], points.loss[others], s=18, color=palette.soft, alpha=0.55, label="tried")
    line = np.flatnonzero(points.frontier)
    line = line[np.argsort(points.cost[line], kind="stable")]
    look: Look = {"color": palette.first, "linewidth": 1.5, "marker": "o", "markersize": 5.5}
    axes.plot(points.cost[line], points.loss[line], drawstyle="steps-post", label="frontier", **look)
    _source(axes, search, points.cost[known], palette)
    if search.chosen is not None and known[search.chosen]:
        _chosen(axes, search.chosen, points, palette)
    axes.margins(0.08, 0.1)
    axes.set_xlabel(cost_label(search.cost))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: cost_said(search.cost, value)))
    scales.values(axes)
    axes.set_title("Loss before healing, nats a token")
    figure.legend(loc="outside lower center", ncols=4, handletextpad=0.4, columnspacing=1.4)
    told = np.flatnonzero(known if known.sum() <= MOST_TOLD else points.frontier)
    return [
        Spot(axes, (points.cost[place],) * 2, (points.loss[place],) * 2, _told(search, points, int(place)), pad=6)
        for place in told
    ]


def _chosen(axes: Axes, chosen: int, points: Tried, palette: Palette) -> None:
    where = (float(points.cost[chosen]), float(points.loss[chosen]))
    look: Look = {"markersize": 13, "markeredgewidth": 2.2, "fillstyle": "none", "linewidth": 0}
    axes.plot(*([at] for at in where), marker="o", color=palette.second, label="chosen", **look)
    text = words.significant(where[1])
    axes.annotate(text, where, (0, -12), textcoords="offset points", ha="center", va="top", color=palette.second)


def _source(axes: Axes, search: Search, costs: np.ndarray, palette: Palette) -> None:
    """A line at the source's loss, and the source itself where it is not too far away."""
    loss, size = search.dense_loss, search.dense_parameters
    if not math.isfinite(loss):
        return
    span = costs.max() - min(costs.min(), size)
    near = search.cost in PARAMETERS and size - costs.max() <= FARTHEST * max(span, 0.02 * size)
    name = f"source, {cost_said('params', size)}" if math.isfinite(size) else "source"
    if near:
        axes.scatter([size], [loss], marker="D", s=42, color=palette.third, zorder=3)
    scales.reference(axes, f"{name}:", loss, palette, side="left")
