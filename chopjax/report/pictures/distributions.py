"""How the scores of an axis are spread and where the plan cuts: a histogram, and beneath it layers or ranks."""

import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from chopjax.report import scales, words
from chopjax.report.canvas import Look, Palette, Picture, Spot
from chopjax.report.curves import thinned
from chopjax.report.pictures import layers, widths
from chopjax.report.pictures.widths import Widths, measured
from chopjax.report.plan_drawing import AXES, BARCODE_CELLS, shares
from chopjax.report.run import Run

BINS = 48
# Layers of at most so many units show each of them, others the quantiles.
MOST_DOTS = 16
BANDS = ((5, 95, 0.18), (25, 75, 0.3))
REASONS = {
    "mlp": "Neurons are ranked within their layer.",
    "q_per_kv": "Query heads are ranked within the group that shares a key/value head, so that groups stay equal.",
    "kv_heads": "Key/value heads are ranked within their layer, each by all the query heads that share it.",
    "embed": "Channels have one order for the whole network.",
}


def pictures(run: Run) -> list[Picture]:
    """One for each axis of which a run has scores."""
    return [
        Picture(f"scores_{one.axis}", reason(one), describe(one), 4.6, functools.partial(_paint, one))
        for one in measured(run)
    ]


def reason(one: Widths) -> str:
    """How units of the axis are ranked, and by what."""
    return f"{REASONS[one.axis]} {one.how}"


def describe(one: Widths) -> str:
    """The picture in words."""
    values = one.relative[np.isfinite(one.relative)]
    text = f"{one.short[0].upper()}{one.short[1:]} of {AXES[one.axis]}"
    if values.size:
        low, high = (words.significant(np.percentile(values, q)) for q in (5, 95))
        text += f": 90 % lie between {low} and {high} times the mean{' of their layer' if one.by_layer else ''}"
    parts = [f"{text}."]
    if one.stays is not None:
        counted = one.stays[_living(one)]
        parts.append(f"{words.percent(counted.mean())} of them stay{' in the layers kept' if one.by_layer else ''}.")
    if lost := int((~np.isfinite(one.scores)).sum()):
        parts.append(f"{lost} scores are not finite.")
    return " ".join(parts)


def split(one: Widths) -> dict[str, Float[np.ndarray, " units"]]:
    """Finite relative scores of the layers kept, as "kept" and "dropped" by the plan, or "all" where it does not cut.

    Values of 0 or less, which a logarithmic scale has no place for, are put where the lowest other value is.
    """
    living = _living(one)
    values, stays = one.relative[living], None if one.stays is None else one.stays[living]
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return {}
    values = np.where(values > 0, values, np.where(np.isnan(values), np.nan, positive.min()))
    finite = np.isfinite(values)
    if stays is None:
        return {"all": values[finite]}
    return {"kept": values[finite & stays], "dropped": values[finite & ~stays]}


def lowest_kept(one: Widths) -> Float[np.ndarray, " rows"]:
    """For each row the lowest score that stays: NaN in a layer that goes, or where the axis is not cut."""
    if one.stays is None:
        return np.full(len(one.scores), np.nan)
    lowest = np.where(one.stays & np.isfinite(one.scores), one.scores, np.inf).min(axis=1)
    return np.where(np.isfinite(lowest), lowest, np.nan)


def _living(one: Widths) -> Bool[np.ndarray, " rows"]:
    return np.ones(len(one.scores), bool) if one.layers is None else one.layers


def _paint(one: Widths, figure: Figure, palette: Palette) -> list[Spot]:
    above, below = figure.subplots(2, 1, height_ratios=(2, 3))
    spots = _histogram(above, one, palette)
    return spots + (_by_layer if one.by_layer else _by_rank)(below, one, palette)


def _histogram(axes: Axes, one: Widths, palette: Palette) -> list[Spot]:
    values = split(one)
    axes.set_title(f"{widths.TITLES[one.axis]}: score ÷ mean{_within(one)}")
    axes.spines["left"].set_visible(False)
    if not values:
        axes.set_axis_off()
        return []
    every = np.concatenate(list(values.values()))
    edges = np.geomspace(every.min() * 0.98, every.max() * 1.02, min(BINS, 2 * math.isqrt(every.size) + 1) + 1)
    looks = {"dropped": (palette.second, 0.55), "kept": (palette.first, 0.55), "all": (palette.first, 0.55)}
    counts = {name: np.histogram(found, edges)[0] for name, found in values.items()}
    for name in [name for name in looks if name in counts]:
        colour, alpha = looks[name]
        label = f"{name}, {len(values[name]):,}"
        axes.stairs(counts[name], edges, fill=True, color=colour, alpha=alpha, linewidth=0)
        axes.stairs(counts[name], edges, color=colour, linewidth=1.3, linestyle=_STYLES[name], label=label)
    scales.logarithmic_below(axes, edges[0], edges[-1])
    axes.set_yticks([])
    axes.set_ylim(0, 1.4 * max(count.max() for count in counts.values()))
    axes.legend(loc="upper right", ncols=2, handlelength=1.6, columnspacing=1.2)
    return [
        Spot(axes, (edges[bin], edges[bin + 1]), None, f"{words.significant(edges[bin])} to {_bin(counts, edges, bin)}")
        for bin in range(len(edges) - 1)
        if any(count[bin] for count in counts.values())
    ]


_STYLES = {"kept": "-", "all": "-", "dropped": "--"}


def _bin(counts: dict[str, np.ndarray], edges: np.ndarray, bin: int) -> str:
    numbers = ", ".join(f"{count[bin]:,} {name if name != 'all' else 'units'}" for name, count in counts.items())
    return f"{words.significant(edges[bin + 1])} times the mean: {numbers}"


def _within(one: Widths) -> str:
    return " of the layer" if one.by_layer else ""


def _by_layer(axes: Axes, one: Widths, palette: Palette) -> list[Spot]:
    rows, units = one.scores.shape
    scores = np.where(np.isfinite(one.scores) & (one.scores > 0), one.scores, np.nan)
    layers.shade(axes, one.layers, palette)
    paint, shown = (_dots, scores) if units <= MOST_DOTS else (_bands, _percentiles(scores, (5, 95)))
    paint(axes, scores, one, palette)
    handles = [*axes.get_legend_handles_labels()[0], *layers.legend_of_shade(one.layers, palette)]
    axes.legend(handles=handles, loc="best", ncols=2, handlelength=1.4, columnspacing=1, borderaxespad=0.2)
    layers.number(axes, rows)
    scales.logarithmic(axes, np.nanmin(shown) / 1.2, np.nanmax(shown) * 1.2)
    axes.set_title(f"{one.short}, by layer", fontweight="normal")
    texts = [_quantiles(scores[row]) for row in range(rows)]
    return [
        Spot(axes, (row - 0.5, row + 0.5), None, f"layer {row}{layers.fate(one.layers, row)}: {text}")
        for row, text in enumerate(texts)
    ]


def _bands(axes: Axes, scores: Float[np.ndarray, "rows units"], one: Widths, palette: Palette) -> None:
    quantiles = _percentiles(scores, (5, 25, 50, 75, 95))
    x = np.arange(len(scores))
    for (low, high, alpha), (lower, upper) in zip(BANDS, ((0, 4), (1, 3)), strict=True):
        band: Look = {"color": palette.first, "alpha": alpha, "linewidth": 0, "step": "mid"}
        axes.fill_between(x, quantiles[lower], quantiles[upper], label=f"{low} to {high} %", **band)
    axes.step(x, quantiles[2], where="mid", color=palette.first, linewidth=1.8, label="median")
    if one.stays is not None and not one.stays[_living(one)].all():
        style: Look = {"linewidth": 0, "marker": "_", "markersize": 7, "markeredgewidth": 2}
        axes.plot(x, lowest_kept(one), color=palette.second, label="lowest kept", **style)


def _percentiles(scores: Float[np.ndarray, "rows units"], which: Sequence[int]) -> Float[np.ndarray, "which rows"]:
    """Of each row what is finite; NaN where nothing is."""
    found = np.full((len(which), len(scores)), np.nan)
    for row in np.flatnonzero(np.isfinite(scores).any(axis=1)):
        found[:, row] = np.nanpercentile(scores[row], which)
    return found


def _dots(axes: Axes, scores: Float[np.ndarray, "rows units"], one: Widths, palette: Palette) -> None:
    stays = np.ones(scores.shape, bool) if one.stays is None else one.stays
    x = np.broadcast_to(np.arange(len(scores))[:, None], scores.shape)
    axes.scatter(x[stays], scores[stays], s=14, color=palette.first, label="kept" if one.stays is not None else "all")
    if not stays.all():
        look: Look = {"facecolors": "none", "edgecolors": palette.second, "linewidths": 1.1}
        axes.scatter(x[~stays], scores[~stays], s=14, label="dropped", **look)


def _by_rank(axes: Axes, one: Widths, palette: Palette) -> list[Spot]:
    """All scores from the highest to the lowest, and beneath them which of the ranks are dropped."""
    scores = np.where(one.scores[0] > 0, one.scores[0], np.nan)
    order = np.argsort(np.where(np.isfinite(scores), -scores, np.inf), kind="stable")
    ranks, ordered = np.arange(1.0, len(scores) + 1), scores[order]
    low, high = np.nanmin(ordered), np.nanmax(ordered)
    low, high = low / (high / low) ** 0.12 / 1.05, high * 1.1
    axes.plot(*thinned(ranks, ordered), color=palette.first, linewidth=1.8)
    if one.stays is not None:
        # As high as the share of the ranks that is dropped, so that a wide model is drawn in few steps.
        dropped = shares(np.flatnonzero(~one.stays[0][order]), len(order), BARCODE_CELLS)
        edges = np.linspace(0.5, len(order) + 0.5, len(dropped) + 1)
        heights = low * (high / low) ** (0.07 * dropped)
        axes.stairs(heights, edges, baseline=low, fill=True, color=palette.second, linewidth=0, label="dropped")
        axes.legend(loc="upper right", handlelength=1.2)
    axes.set_xlabel("rank")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlim(0, len(scores) + 1)
    scales.logarithmic(axes, low, high)
    axes.set_title(f"{one.short}, sorted", fontweight="normal")
    half = max(1, len(scores) // BINS) / 2
    told = [at for at in range(0, len(scores), round(2 * half)) if np.isfinite(ordered[at])]
    return [Spot(axes, (ranks[at] - half, ranks[at] + half), None, _ranked(one, at, int(order[at]))) for at in told]


def _ranked(one: Widths, place: int, unit: int) -> str:
    fate = "" if one.stays is None else ", kept" if one.stays[0, unit] else ", dropped"
    return f"rank {place + 1:,}: channel {unit}, {words.significant(one.scores[0, unit])}{fate}"


def _quantiles(scores: Float[np.ndarray, " units"]) -> str:
    if not np.isfinite(scores).any():
        return "no score above 0"
    low, middle, high = (words.significant(q) for q in np.nanpercentile(scores, (5, 50, 95)))
    return f"median {middle}, 90 % between {low} and {high}"
