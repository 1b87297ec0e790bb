"""What pictures by layer share: which layers the plan keeps, and how those that go are marked."""

import numpy as np
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from chopjax.report.canvas import Palette
from chopjax.report.run import Run


def kept(run: Run, layers: int) -> Bool[np.ndarray, "layers"] | None:
    """Which of so many layers the plan keeps; None without a plan, or if it was made for another number of them."""
    if run.plan is None or run.plan.source.get("layers") != layers:
        return None
    return np.isin(np.arange(layers), run.plan.layers)


def block(stays: Bool[np.ndarray, "layers"] | None) -> tuple[int, int] | None:
    """First layer and length of what goes, where that is one contiguous block."""
    gone = np.flatnonzero(~stays) if stays is not None else np.zeros(0, int)
    return (int(gone[0]), len(gone)) if gone.size and gone[-1] - gone[0] + 1 == len(gone) else None


def fate(stays: Bool[np.ndarray, "layers"] | None, layer: int) -> str:
    """What a tooltip says about a layer after its number."""
    return "" if stays is None else ", kept" if stays[layer] else ", removed"


def shade(axes: Axes, stays: Bool[np.ndarray, "layers"] | None, palette: Palette) -> None:
    """A band behind each layer that goes."""
    for layer in np.flatnonzero(~stays) if stays is not None else ():
        axes.axvspan(layer - 0.5, layer + 0.5, color=palette.second, alpha=0.13, linewidth=0, zorder=0)


def legend_of_shade(stays: Bool[np.ndarray, "layers"] | None, palette: Palette) -> list[Patch]:
    """The band's entry in a legend, where there is one to explain."""
    if stays is None or stays.all():
        return []
    return [Patch(facecolor=palette.second, alpha=0.3, linewidth=0, label="layer goes")]


def number(axes: Axes, layers: int, label: str = "layer") -> None:
    """Numbers the horizontal axis by layers."""
    axes.set_xlim(-0.6, layers - 0.4)
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
