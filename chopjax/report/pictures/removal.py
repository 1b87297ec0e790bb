"""Losses as layers go: one after the other, and in contiguous blocks."""

import dataclasses
import functools
import math
from collections.abc import Collection

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chopjax.report import scales, words
from chopjax.report.canvas import Look, Palette, Picture, Spot
from chopjax.report.pictures import layers, metric
from chopjax.report.run import Run
from chopjax.score.candidates import SCORED, dense_name

# Of a longer path, labels of layers would touch each other.
MOST_LABELLED = 24


@dataclasses.dataclass(frozen=True)
class Path:
    """Greedy removal: the layers in the order in which they went, the loss after each, and which the plan removes."""

    metric: str
    dense: float
    removed: tuple[int, ...]
    losses: Float[np.ndarray, "removed"]
    planned: Collection[int]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Losses without `count` contiguous layers, by the first of them; `planned` is where the plan's block begins."""

    metric: str
    dense: float
    count: int
    losses: Float[np.ndarray, "starts"]
    planned: int | None


def path(run: Run) -> Path | None:
    """The path of greedy removal, if a run has one."""
    found = run.removal
    if found is None or not np.isfinite(found.losses).any():
        return None
    losses = np.asarray(found.losses, np.float64)
    planned = set(range(run.plan.source["layers"])) - set(run.plan.layers) if run.plan else set()
    return Path(found.metric, found.dense, tuple(found.removed), losses, planned)


def blocks(run: Run) -> Blocks | None:
    """The losses without blocks, measured for the plan or kept in the score file: of the plan's length if there are."""
    measured = _from_file(run)
    if run.removal is not None and run.removal.blocks and run.removal.count > 1:
        losses = np.asarray(run.removal.blocks, np.float64)
        measured[run.removal.count] = (run.removal.metric, run.removal.dense, losses)
    measured = {count: found for count, found in measured.items() if np.isfinite(found[2]).any()}
    if not measured:
        return None
    stays = {count: layers.kept(run, len(found[2]) + count - 1) for count, found in measured.items()}
    planned = {count: removed for count in measured if (removed := layers.block(stays[count])) and removed[1] == count}
    count = next(iter(planned), next(reversed(measured)))
    return Blocks(measured[count][0], measured[count][1], count, measured[count][2], planned.get(count, (None,))[0])


def pictures(run: Run) -> list[Picture]:
    """The path and the blocks, as far as a run has measured them."""
    found = []
    if (greedy := path(run)) is not None:
        reason = "One layer goes at a time, the one that costs least, and the rest are scored again after each."
        paint = functools.partial(_paint_path, greedy)
        found.append(Picture("greedy_removal", reason, describe_path(greedy), 3.3, paint))
    if (contiguous := blocks(run)) is not None:
        reason = "Where a block of this length costs least, the layers around it can do without it."
        paint = functools.partial(_paint_blocks, contiguous)
        found.append(Picture("block_removal", reason, describe_blocks(contiguous), 3.3, paint))
    return found


def describe_path(found: Path) -> str:
    """The path in words."""
    steps = zip(found.removed, found.losses, strict=True)
    said = ", ".join(f"layer {layer} ({scales.said(loss)})" for layer, loss in steps)
    start = f" from {words.significant(found.dense)}" if math.isfinite(found.dense) else ""
    return f"{metric.title(found.metric)}, after each removal{start}: {said}."


def describe_blocks(found: Blocks) -> str:
    """The blocks in words."""
    best = int(np.nanargmin(found.losses))
    text = (
        f"{metric.title(found.metric)}, without {found.count} contiguous layers, by the first of them. "
        f"Lowest: {words.significant(found.losses[best])} from layer {best}."
    )
    if found.planned is not None:
        text += f" The plan removes those from layer {found.planned}: {scales.said(found.losses[found.planned])}."
    return text


def _from_file(run: Run) -> dict[int, tuple[str, float, np.ndarray]]:
    """Count → metric, loss of the whole model, and losses by first layer, of a score file."""
    found = {}
    for name, sums in run.scores.items():
        kind, _, rest = name.partition("/")
        by, _, count = rest.rpartition("/")
        if kind == "without_block" and count.isdecimal() and SCORED in run.scores:
            tokens = max(run.scores[SCORED].sum(), 1)
            dense = run.scores[dense_name(by)].sum() / tokens if dense_name(by) in run.scores else math.nan
            found[int(count)] = (by, float(dense), sums.sum(0) / tokens)
    return found


def _paint_path(found: Path, figure: Figure, palette: Palette) -> list[Spot]:
    axes = figure.add_subplot()
    numbers = np.arange(len(found.removed) + 1)
    losses = np.concatenate([[found.dense], found.losses])
    axes.plot(numbers, losses, color=palette.first, linewidth=1.6)
    planned = np.array([True, *(layer in found.planned for layer in found.removed)])
    _dots(axes, numbers, losses, planned, palette)
    labels = ["none", *map(str, found.removed)]
    every = -(-len(labels) // MOST_LABELLED)
    axes.set_xticks(numbers[::every], labels[::every], fontsize=11 if len(labels) <= 14 else 8)
    axes.set_xlabel("layer removed, in this order")
    if found.planned and not planned.all():
        axes.legend(loc="upper left", handletextpad=0.2)
    scales.values(axes)
    axes.set_title(f"{metric.title(found.metric)}: greedy removal")
    texts = ["no layer removed", *(f"layer {layer}, number {n}" for n, layer in enumerate(found.removed, 1))]
    return [
        Spot(axes, (n - 0.5, n + 0.5), None, f"{text}: {scales.said(loss)}")
        for n, text, loss in zip(numbers, texts, losses, strict=True)
        if n or math.isfinite(loss)
    ]


def _dots(
    axes: Axes,
    x: np.ndarray,
    y: Float[np.ndarray, "points"],
    planned: Bool[np.ndarray, "points"],
    palette: Palette,
) -> None:
    looks = ((planned, palette.first, "removed by the plan"), (~planned, palette.card, "not removed by the plan"))
    for which, fill, label in looks:
        axes.scatter(x[which], y[which], s=34, facecolors=fill, edgecolors=palette.first, zorder=3, label=label)


def _paint_blocks(found: Blocks, figure: Figure, palette: Palette) -> list[Spot]:
    axes = figure.add_subplot()
    starts = np.arange(len(found.losses))
    axes.plot(starts, found.losses, color=palette.first, linewidth=1.6, marker="o", markersize=3.5)
    best = int(np.nanargmin(found.losses))
    places = {"lowest": (best, palette.first)}
    if found.planned is not None:
        same = found.planned == best
        places = {} if same else places
        places["the plan's, the lowest" if same else "the plan's"] = (found.planned, palette.second)
    for label, (place, colour) in places.items():
        text = f"{label}: {place}–{place + found.count - 1}, {scales.said(found.losses[place])}"
        look: Look = {"markersize": 11, "markeredgewidth": 2, "fillstyle": "none", "linewidth": 0}
        axes.plot([place], [found.losses[place]], marker="o", color=colour, label=text, **look)
    axes.legend(loc="best", handletextpad=0.4)
    axes.set_xlabel("first removed layer")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    if math.isfinite(found.dense):
        scales.reference(axes, "nothing removed", found.dense, palette)
    scales.values(axes)
    axes.set_title(f"{metric.title(found.metric)}: without {found.count} contiguous layers")
    return [
        Spot(axes, (start - 0.5, start + 0.5), None, f"without {start}–{start + found.count - 1}: {scales.said(loss)}")
        for start, loss in zip(starts, found.losses, strict=True)
    ]
