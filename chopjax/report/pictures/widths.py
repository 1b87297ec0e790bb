"""Scores of neurons, heads and channels as plain data: those that the plan was made from, where a run tells them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from chopjax.axes import AROUND
from chopjax.chop.apply import mask
from chopjax.report.pictures import layers
from chopjax.report.run import Run
from chopjax.score.aggregate import OVER_BATCH, OVER_SEQUENCE, activation_scores
from chopjax.score.stability import split_half

AXES = ("mlp", "q_per_kv", "kv_heads", "embed")
# How axes are called in titles.
TITLES = {
    "mlp": "MLP neurons",
    "q_per_kv": "Query heads",
    "kv_heads": "KV heads",
    "embed": "Channels",
    "layers": "Layers",
}
_SUMMED = {"rows", "mlp", "q_per_kv", "embed"}


@dataclasses.dataclass(frozen=True)
class Widths:
    """The scores of one axis.

    Attributes:
        axis: its name.
        kind: what the scores are.
        short: the same with its aggregation, where it has one: "activation score (l2, then mean)".
        how: what they are and whether the plan was made from them, in a sentence or two.
        scores: one row for each layer, or one for the whole model; NaN where not finite.
        stays: what the plan keeps, of the same shape; None if it does not cut the axis.
        layers: which layers the plan keeps; None without a plan, or where rows are not layers.
    """

    axis: str
    kind: str
    short: str
    how: str
    scores: Float[np.ndarray, "rows units"]
    stays: Bool[np.ndarray, "rows units"] | None
    layers: Bool[np.ndarray, "rows"] | None

    @property
    def by_layer(self) -> bool:
        """Whether each layer has scores of its own."""
        return "layers" in AROUND[self.axis]

    @property
    def relative(self) -> Float[np.ndarray, "rows units"]:
        """Finite scores over the mean of their row, as they are ranked row by row; NaN where that is not above 0."""
        finite = np.isfinite(self.scores)
        mean = np.where(finite, self.scores, 0).sum(1) / np.maximum(finite.sum(1), 1)
        return np.where(finite, self.scores, np.nan) / np.where(mean > 0, mean, np.nan)[:, None]


def measured(run: Run) -> list[Widths]:
    """The axes for which a run has scores with something to compare."""
    one = _scores(run)
    scores = one.scores
    found = []
    for axis in AXES:
        if axis in scores and scores[axis].shape[-1] > 1 and (np.isfinite(scores[axis]) & (scores[axis] > 0)).any():
            rows = scores[axis].reshape(len(scores[axis]) if "layers" in AROUND[axis] else 1, -1)
            stays = _stays(run, axis, scores[axis].shape)
            by_layer = layers.kept(run, len(rows)) if "layers" in AROUND[axis] else None
            kept = None if stays is None else stays.reshape(rows.shape)
            found.append(Widths(axis, one.kind, one.short, one.how, rows, kept, by_layer))
    return found


def stability(run: Run) -> dict[str, float]:
    """Axis → rank correlation between two halves of the calibration rows; `layers` by block importance."""
    if _SUMMED - run.scores.keys():
        return {}
    over_batch, over_sequence = _aggregation(run)
    return {axis: r for axis, r in split_half(run.scores, over_batch, over_sequence).items() if np.isfinite(r)}


@dataclasses.dataclass(frozen=True)
class _Found:
    """Scores by axis, and the words of `Widths`."""

    kind: str
    short: str
    how: str
    scores: Mapping[str, Float[np.ndarray, "..."]]


def _scores(run: Run) -> _Found:
    """The scores that the plan was made from; where the run does not hold these, activations, and how it was made."""
    by = _ranked_by(run).get("scores", "")
    if by == "dimchop" and run.pooled:
        how = "By DimCHOP: sensitivity times uncertainty, at the end of training with masks."
        return _Found("DimCHOP score", "DimCHOP score", how, run.pooled)
    taylor = {axis: run.scores[f"taylor/{axis}"].sum(0) for axis in AXES if f"taylor/{axis}" in run.scores}
    if by == "taylor" and taylor:
        how = "By the first-order change of the loss without them."
        return _Found("Taylor score", "Taylor score", how, taylor)
    if _SUMMED - run.scores.keys():
        return _Found("", "", "", {})
    over_batch, over_sequence = _aggregation(run)
    short = f"activation score ({over_sequence}, then {over_batch})"
    said = f"{_NORMS[over_sequence]} over the tokens of a row, then {_NORMS[over_batch]} over rows"
    scores = activation_scores(run.scores, over_batch, over_sequence)
    return _Found("activation score", short, _activations_said(run, by, said), scores)


_NORMS = {"mean": "mean", "l2": "L2 norm", "var": "variance"}
_OTHERWISE = {"magnitude": "their weights", "random": "chance", "taylor": "Taylor scores", "dimchop": "DimCHOP scores"}


def _activations_said(run: Run, by: str, said: str) -> str:
    """Whether the plan was made from the activations that are shown, aggregated as `said`."""
    if by in _OTHERWISE:
        return f"The plan went by {_OTHERWISE[by]}; shown are activations on calibration text ({said})."
    text = f"By activations on calibration text: {said}."
    if by == "best":  # unsettled, as plans of earlier versions leave it
        return f"{text} Which aggregation the plan took, it does not say."
    rounds = str(_ranked_by(run).get("iterations", 1))
    return text if rounds == "1" else f"{text} That was before the first of {rounds} steps; each ranked what was left."


def _ranked_by(run: Run) -> Mapping[str, Any]:
    """What the plan says of its scores; where it says nothing, what the config asked for if any width was ranked."""
    if run.plan is not None and run.plan.widths_by:
        return run.plan.widths_by
    chosen = _planned(run)
    ranked = run.plan is not None and not run.plan.kept.keys().isdisjoint(AXES)
    return {**chosen, "scores": chosen.get("widths_by", "") if ranked else ""}


def _aggregation(run: Run) -> tuple[str, str]:
    chosen = _ranked_by(run)
    over_batch, over_sequence = (chosen.get(name) for name in ("over_batch", "over_sequence"))
    return (
        over_batch if over_batch in OVER_BATCH else "l2",
        over_sequence if over_sequence in OVER_SEQUENCE else "mean",
    )


def _planned(run: Run) -> Mapping[str, Any]:
    chosen = (run.config or {}).get("plan")
    return chosen if isinstance(chosen, Mapping) else {}


def _stays(run: Run, axis: str, shape: tuple[int, ...]) -> Bool[np.ndarray, "..."] | None:
    if run.plan is None or axis not in run.plan.kept:
        return None
    stays = mask(run.plan, axis) > 0
    return stays if stays.shape == shape else None
