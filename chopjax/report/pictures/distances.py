"""How far the hidden state moves over every contiguous block of layers: the figure of Gromov et al. (2403.17887)."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from chopjax.report import words
from chopjax.report.canvas import Palette, Picture, Spot
from chopjax.report.pictures import layers
from chopjax.report.run import Run
from chopjax.score.similarity import block_distances

# Cells of deeper models are too many and too small to say a number each; the shortest distances do.
MOST_CELLS = 1200


@dataclasses.dataclass(frozen=True)
class Distances:
    """Angular distances over blocks of layers.

    Attributes:
        angles: arccos(cos) / π between the input of a block and its output, [count - 1, first layer]; NaN where a
            block would reach beyond the last layer.
        removed: first layer and length of the block that the plan removes, if it removes one.
    """

    angles: Float[np.ndarray, "counts layers"]
    removed: tuple[int, int] | None

    @property
    def nearest(self) -> list[int]:
        """For each number of layers, where the block of the shortest distance begins."""
        return [int(np.nanargmin(row)) for row in self.angles]


def measured(run: Run) -> Distances | None:
    """The distances of a run's score file, if it has them and there are blocks to compare."""
    if not {"angle", "tokens"} <= run.scores.keys() or run.scores["angle"].shape[-1] < 3:
        return None
    between = block_distances(run.scores, "angle")
    count = len(between) - 1
    angles = np.full((count - 1, count), np.nan)
    for size in range(1, count):
        angles[size - 1, : count - size + 1] = np.diagonal(between, offset=size)
    if np.isnan(angles).all(axis=1).any():
        return None
    return Distances(angles, layers.block(layers.kept(run, count)))


def picture(run: Run) -> Picture | None:
    """The heat map, if a run has measured the distances."""
    found = measured(run)
    if found is None:
        return None
    reason = (
        "A contiguous block over which the hidden state hardly turns can go as a whole; dots mark where each number of "
        "layers is nearest to doing nothing."
    )
    return Picture("angular_distances", reason, describe(found), 4.5, functools.partial(_paint, found))


def describe(found: Distances) -> str:
    """The picture in words."""
    text = "Angular distance over contiguous blocks, angle ÷ π, by first removed layer and number of layers."
    said = [
        f"{size} from layer {found.nearest[size - 1]} ({words.significant(found.angles[size - 1, start])})"
        for size in range(1, min(6, len(found.angles)) + 1)
        for start in [found.nearest[size - 1]]
    ]
    text += f" Shortest: {', '.join(said)}."
    if found.removed and found.removed[1] <= len(found.angles):
        text += f" The plan removes {_block(found, *found.removed)}."
    return text


def _block(found: Distances, first: int, size: int) -> str:
    value = words.significant(found.angles[size - 1, first])
    return f"{words.ranges(range(first, first + size))}: {value}"


def _paint(found: Distances, figure: Figure, palette: Palette) -> list[Spot]:
    axes = figure.add_subplot()
    counts, count = found.angles.shape
    edges = (-0.5, count - 0.5, 0.5, counts + 0.5)
    image = axes.imshow(
        np.ma.masked_invalid(found.angles),
        origin="lower",
        extent=edges,
        aspect="auto",
        cmap="viridis_r",
        interpolation="nearest",
    )
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.yaxis.set_major_locator(MaxNLocator(6))
    axes.scatter(
        found.nearest,
        range(1, counts + 1),
        s=float(np.clip((115 / counts) ** 2, 3, 22)),
        facecolors=palette.card,
        edgecolors=palette.ink,
        linewidths=0.8 if counts <= 40 else 0,
        zorder=3,
    )
    if found.removed and found.removed[1] <= counts:
        _mark(axes, found, palette)
    axes.spines[["left", "bottom"]].set_visible(False)
    layers.number(axes, count, "first removed layer")
    axes.set_ylabel("removed layers")
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_ylim(0.5, counts + 0.5)
    axes.set_title("Angular distance over blocks, angle ÷ π")
    return [
        Spot(axes, (start - 0.5, start + 0.5), (size - 0.5, size + 0.5), _block(found, start, size))
        for size in range(1, counts + 1)
        for start in range(count - size + 1)
        if np.isfinite(found.angles).sum() <= MOST_CELLS or start == found.nearest[size - 1]
    ]


def _mark(axes: Axes, found: Distances, palette: Palette) -> None:
    """A frame around the plan's block, and its distance in the empty corner."""
    assert found.removed
    first, size = found.removed
    axes.add_patch(
        Rectangle((first - 0.5, size - 0.5), 1, 1, fill=False, edgecolor=palette.second, linewidth=2.4, zorder=4)
    )
    axes.annotate(
        f"the plan removes\n{_block(found, first, size)}",
        (first + 0.5, size + 0.5),
        (0.97, 0.93),
        textcoords="axes fraction",
        ha="right",
        va="top",
        color=palette.second,
        arrowprops={"arrowstyle": "-", "color": palette.second, "linewidth": 1},
    )
