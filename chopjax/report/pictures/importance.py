"""How much each layer does: block importance, and the increase of the loss without it."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chopjax.report import scales, words
from chopjax.report.canvas import Look, Palette, Picture, Spot
from chopjax.report.pictures import layers, metric
from chopjax.report.run import Run
from chopjax.score.candidates import SCORED, dense_name
from chopjax.score.similarity import block_importance

# A bar of more than so many times the 80th percentile is cut off and says its value, so that the others can be read.
OFF_SCALE = 3
# Bars of more layers are too narrow for a value.
MOST_LABELLED = 40


@dataclasses.dataclass(frozen=True)
class Panel:
    """A value for each layer; NaN where it is not finite."""

    title: str
    values: Float[np.ndarray, "layers"]

    @property
    def top(self) -> float:
        """The value up to which bars are drawn."""
        finite = self.values[np.isfinite(self.values)]
        limit = OFF_SCALE * np.percentile(finite, 80)
        return float(finite[finite <= limit].max(initial=0)) if limit > 0 else max(float(finite.max()), 0.0)


@dataclasses.dataclass(frozen=True)
class Importance:
    """One panel for each criterion, and which layers stay if that is known."""

    panels: tuple[Panel, ...]
    stays: Bool[np.ndarray, "layers"] | None


def measured(run: Run) -> Importance | None:
    """The panels for which a run has figures, all of as many layers; None without any."""
    panels = [Panel("Block importance, 1 − cos(in, out)", block_importance(run.scores))] if _similar(run) else []
    increases = _increases(run)
    panels += [Panel(f"{metric.title(name)}: increase without the layer", by) for name, by in increases.items()]
    panels = [panel for panel in panels if np.isfinite(panel.values).any()]
    panels = [panel for panel in panels if len(panel.values) == len(panels[0].values)]
    return Importance(tuple(panels), layers.kept(run, len(panels[0].values))) if panels else None


def picture(run: Run) -> Picture | None:
    """The importance of layers, if a run has measured it."""
    found = measured(run)
    if found is None:
        return None
    reason = "A layer whose output hardly differs from its input, or whose absence costs little loss, can go first."
    height = 0.7 + 2.1 * len(found.panels)
    return Picture("layer_importance", reason, describe(found), height, functools.partial(_paint, found))


def describe(found: Importance) -> str:
    """The picture in words."""
    parts = []
    for panel in found.panels:
        lowest = np.argsort(np.where(np.isfinite(panel.values), panel.values, np.inf), kind="stable")[:5]
        said = ", ".join(f"layer {layer} ({scales.said(panel.values[layer])})" for layer in lowest)
        parts.append(f"{panel.title}, by layer. Lowest: {said}.")
    if found.stays is not None and not found.stays.all():
        parts.append(f"Removed: {words.ranges(np.flatnonzero(~found.stays).tolist())}.")
    return " ".join(parts)


def _similar(run: Run) -> bool:
    return {"cosine", "tokens"} <= run.scores.keys()


def _increases(run: Run) -> dict[str, Float[np.ndarray, "layers"]]:
    """By metric, the loss without each layer less the loss of the whole model; that of a divergence is 0."""
    found = {}
    for name, sums in run.scores.items():
        kind, _, by = name.partition("/")
        dense = run.scores.get(dense_name(by), 0.0 if by == "kl" else None)
        if kind == "without_one" and dense is not None and SCORED in run.scores:
            found[by] = (sums.sum(0) - np.sum(dense)) / max(run.scores[SCORED].sum(), 1)
    removal = run.removal
    if removal is not None:
        alone = removal.without_one or (removal.blocks if removal.count == 1 else ())
        whole = 0.0 if removal.metric == "kl" else removal.dense
        if alone and np.isfinite(whole):
            found[removal.metric] = np.asarray(alone, np.float64) - whole
    return found


def _paint(found: Importance, figure: Figure, palette: Palette) -> list[Spot]:
    rows = figure.subplots(len(found.panels), 1, sharex=True, squeeze=False)[:, 0]
    for panel, axes in zip(found.panels, rows, strict=True):
        _bars(axes, panel, found.stays, palette)
    count = len(found.panels[0].values)
    layers.number(rows[-1], count)
    handles = layers.legend_of_shade(found.stays, palette)
    if handles:
        figure.legend(handles=handles, loc="outside upper right", handlelength=1.2)
    spots = []
    for axes in rows:
        for layer in range(count):
            values = "; ".join(f"{panel.title}: {scales.said(panel.values[layer])}" for panel in found.panels)
            text = f"layer {layer}{layers.fate(found.stays, layer)}. {values}"
            spots.append(Spot(axes, (layer - 0.5, layer + 0.5), None, text))
    return spots


def _bars(axes: Axes, panel: Panel, stays: Bool[np.ndarray, "layers"] | None, palette: Palette) -> None:
    top = panel.top
    shown = np.minimum(np.nan_to_num(panel.values, nan=0, posinf=top, neginf=0), top)
    layers.shade(axes, stays, palette)
    filled = np.ones(len(shown), bool) if stays is None else stays
    looks: list[tuple[np.ndarray, Look]] = [
        (filled, {"color": palette.first}),
        (~filled, {"facecolor": "none", "edgecolor": palette.second, "linewidth": 1.2}),
    ]
    for which, look in looks:
        axes.bar(np.flatnonzero(which), shown[which], width=0.72, **look)
    low = min(float(shown.min()), 0.0)
    # Bars that are cut off rise a little above the others.
    height = (top - low) or 1.0
    axes.set_ylim(low - (0.05 * height if low < 0 else 0), top + 0.12 * height)
    for layer in np.flatnonzero(panel.values > top):
        _cut_off(axes, int(layer), panel.values[layer], len(shown), palette)
    axes.axhline(0, color=palette.soft, linewidth=0.8)
    axes.spines["bottom"].set_visible(False)
    scales.values(axes, 5)
    axes.set_title(panel.title)


def _cut_off(axes: Axes, layer: int, value: float, count: int, palette: Palette) -> None:
    """An arrow over a bar that goes on, with its value inside the bar where there is room."""
    top = axes.get_ylim()[1]
    axes.plot([layer], [top], marker="^", markersize=5, color=palette.ink, clip_on=False)
    if count <= MOST_LABELLED:
        label = f"{words.significant(value, 2)} "
        box = {"facecolor": palette.card, "edgecolor": "none", "pad": 1, "alpha": 0.85}
        axes.text(layer, top * 0.9, label, rotation=90, ha="center", va="top", fontsize=8, bbox=box)
