"""Curves of a run as inline SVG by matplotlib, in colours that follow the page's light or dark theme."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from chopjax.distill.config import TEACHER_TERMS
from chopjax.report import canvas, scales, words
from chopjax.report.canvas import Palette, Picture, Spot
from chopjax.report.markup import Markup

# Neighbours differ in colour and in stroke, and no two of twelve curves are alike.
STYLES = [(("first", "second", "third")[i % 3], ("-", "--", ":", "-.")[i % 4]) for i in range(12)]

# What is drawn beside the loss.
PARTS = ("next_token", *TEACHER_TERMS, "teacher_next_token")
HIDDEN = "hidden/"

# A longer curve is drawn by the means of so many runs of neighbours.
MOST_POINTS = 600


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve: `y` is NaN where nothing finite was measured."""

    label: str
    x: Float[np.ndarray, " points"]
    y: Float[np.ndarray, " points"]

    @property
    def drawable(self) -> bool:
        """Whether there is at least one point to see."""
        return bool(np.isfinite(self.y).any())


@dataclasses.dataclass(frozen=True)
class Chart:
    """What is drawn in one figure.

    Attributes:
        name: distinguishes ids on the page; letters only.
        title: what the figure shows; also the label of its values.
        x_label: what its horizontal axis counts.
        series: at most three curves.
        references: label → value, drawn as horizontal lines.
        logarithmic: whether values are drawn on a logarithmic scale.
        small: whether the figure is one of several in a line.
    """

    name: str
    title: str
    x_label: str
    series: Sequence[Series]
    references: Mapping[str, float] = dataclasses.field(default_factory=dict)
    logarithmic: bool = False
    small: bool = False


def charts(metrics: Sequence[Mapping[str, Any]], references: Mapping[str, float]) -> list[Chart]:
    """Loss and held-out perplexity, then what else was logged; only charts with something to see.

    Args:
        metrics: the lines of `metrics.jsonl`.
        references: label → held-out perplexity of the models that the curve is to be read against.
    """
    by_tokens = any("tokens" in line for line in metrics)
    x_label = "tokens" if by_tokens else "step"

    def chart(name: str, title: str, *fields: str, **kind: Any) -> Chart:
        found = [series(metrics, field, x_label) for field in fields]
        return Chart(name, title, x_label, [each for each in found if each.drawable], **kind)

    wanted = [
        chart("loss", "Training loss, nats a token", "loss", *_parts(metrics)),
        _perplexity(metrics, x_label, references),
        chart("kl", "Held-out KL to the teacher", "heldout_kl", small=True),
        chart("hidden", "Losses on activations", *_of_activations(metrics), small=True, logarithmic=True),
        chart("norm", "Gradient norm", "grad_norm", small=True),
        chart("rate", "Learning rate", "learning_rate", small=True),
        chart("speed", "Tokens a second", "tokens_per_second", small=True),
        chart("arithmetic", "TFLOP/s of a device", *_with_parts("tflops"), small=True),
        chart("mfu", "Share of peak FLOPs", *_with_parts("mfu"), small=True),
    ]
    return [chart for chart in wanted if chart.series]


def series(metrics: Sequence[Mapping[str, Any]], field: str, x_field: str) -> Series:
    """One field over tokens or steps; values that are not finite numbers become NaN, lines without it are skipped."""
    lines = [line for line in metrics if field in line and not math.isnan(words.number(line.get(x_field)))]
    x = np.array([words.number(line[x_field]) for line in lines], np.float64)
    y = np.array([words.number(line[field]) for line in lines], np.float64)
    return Series(field.removeprefix(HIDDEN).replace("_", " "), x, y)


def picture(chart: Chart) -> Picture:
    """The chart as something to paint."""
    width, height = (3.4, 2.1) if chart.small else (6.2, 3.6)
    return Picture(chart.name, "", describe(chart), height, functools.partial(_paint, chart), width)


def draw(chart: Chart) -> Markup:
    """The chart as an SVG element with its description as a label."""
    return canvas.svg(picture(chart))


def describe(chart: Chart) -> str:
    """The chart in words, for those who do not see it."""
    parts = [f"{chart.title}."]
    for one in chart.series:
        seen = np.flatnonzero(np.isfinite(one.y))
        (x0, y0), (x1, y1) = ((one.x[i], one.y[i]) for i in (seen[0], seen[-1]))
        start, end = (f"{words.significant(y)} at {words.scaled(x)} {chart.x_label}" for x, y in ((x0, y0), (x1, y1)))
        parts.append(
            f"{one.label.capitalize()}: {start}." if x0 == x1 else f"{one.label.capitalize()}: from {start} to {end}."
        )
    parts += [f"{label.capitalize()}: {words.significant(value)}." for label, value in chart.references.items()]
    return " ".join(parts)


def thinned(x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"]) -> tuple[np.ndarray, np.ndarray]:
    """At most `MOST_POINTS` points: means over runs of neighbours, of what is finite in each; NaN if nothing is."""
    if len(x) <= MOST_POINTS:
        return x, y
    run = np.arange(len(x)) * MOST_POINTS // len(x)
    finite = np.isfinite(y)
    count = np.bincount(run, finite, MOST_POINTS)
    total = np.bincount(run, np.where(finite, y, 0), MOST_POINTS)
    mean = np.full(MOST_POINTS, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return np.bincount(run, x, MOST_POINTS) / np.bincount(run, minlength=MOST_POINTS), mean


def _parts(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """The parts of the loss, where they say more than the loss itself."""
    parts = [part for part in PARTS if _seen(metrics, part)]
    alone = len(parts) == 1 and all(line.get("loss") == line.get(parts[0]) for line in metrics if "loss" in line)
    return [] if alone else parts


def _with_parts(field: str) -> tuple[str, str, str]:
    """A figure of the whole step and its parts, which are logged where a teacher is in it."""
    return field, f"{field}_student", f"{field}_teacher"


def _of_activations(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for line in metrics for name in line if name.startswith(HIDDEN))
    return [name for name in names if _seen(metrics, name)]


def _seen(metrics: Sequence[Mapping[str, Any]], field: str) -> bool:
    return any(words.number(line.get(field)) > 0 for line in metrics)


def _perplexity(metrics: Sequence[Mapping[str, Any]], x_label: str, references: Mapping[str, float]) -> Chart:
    lines = [{"student": _heldout(line), x_label: line.get(x_label)} for line in metrics if _evaluated(line)]
    curve = series(lines, "student", x_label)
    lines_at = {label: value for label, value in references.items() if words.number(value) > 0}
    shown = [curve] if curve.drawable else []
    return Chart("perplexity", "Held-out perplexity", x_label, shown, lines_at, logarithmic=True)


def _evaluated(line: Mapping[str, Any]) -> bool:
    return "heldout_perplexity" in line or "heldout_nll" in line


def _heldout(line: Mapping[str, Any]) -> float:
    if "heldout_perplexity" in line:
        value = words.number(line["heldout_perplexity"])
        return value if value > 0 else math.nan
    nll = words.number(line["heldout_nll"])
    return math.exp(nll) if nll < 700 else math.nan


def _paint(chart: Chart, figure: Figure, palette: Palette) -> list[Spot]:
    axes = figure.add_subplot()
    for one, (colour, style) in zip(chart.series, STYLES, strict=False):
        _line(axes, one, getattr(palette, colour), style)
    _finish(axes, chart, palette)
    if len(chart.series) > 1:
        look = {"handlelength": 1.6, "columnspacing": 0.8, "fontsize": 9} if chart.small else {"handlelength": 2.6}
        figure.legend(labels=_labels(chart), loc="outside lower center", ncols=3, **look)
    return []


def _labels(chart: Chart) -> list[str]:
    """Parts of the first curve without its name, which stands before theirs."""
    first = chart.series[0].label
    return [one.label.removeprefix(f"{first} ") for one in chart.series]


def _line(axes: Axes, one: Series, colour: str, style: str) -> None:
    x, y = thinned(one.x, one.y)
    few = np.isfinite(y).sum() <= 40
    axes.plot(
        x, y, color=colour, linestyle=style, linewidth=1.8, marker="o" if few else None, markersize=3, label=one.label
    )


def _finish(axes: Axes, chart: Chart, palette: Palette) -> None:
    axes.grid(True, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(chart.x_label)
    axes.set_title(chart.title)
    axes.xaxis.set_major_locator(MaxNLocator(4 if chart.small else 7, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.scaled(value)))
    for label, value in chart.references.items():
        scales.reference(axes, label, value, palette)
    if chart.logarithmic:
        _logarithmic(axes, chart)
    else:
        scales.values(axes, 4 if chart.small else 6)


def _logarithmic(axes: Axes, chart: Chart) -> None:
    values = [value for one in chart.series for value in one.y if value > 0] + list(chart.references.values())
    scales.logarithmic(axes, min(values) / 1.15, max(values) * 1.3, words.scaled)
