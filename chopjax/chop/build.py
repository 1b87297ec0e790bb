"""From sizes and scores to a plan."""

from collections.abc import Mapping
from typing import get_args

import numpy as np
from jaxtyping import Float, Int

from chopjax.axes import Sizes
from chopjax.chop.config import Layout, PlanConfig
from chopjax.chop.edits import Edit, MergeKvHeads, Refit
from chopjax.chop.heads import group_heads, head_residual, merged_score, neighbours
from chopjax.chop.layouts import kept_layers
from chopjax.chop.plan import Plan, check
from chopjax.errors import UserError

Scores = Mapping[str, Float[np.ndarray, "..."]]
"""By axis, each shaped like its axis; for layers what `LAYER_SCORE` says of the criterion; and where key/value heads
are merged, `kv_similarity` [layers, kv_heads, kv_heads] of every two, neighbours being merged without it; and `words`,
the ids that stay, where it is not the first."""

Indices = Int[np.ndarray, "*around kept"]

WIDTHS = ("kv_heads", "q_per_kv", "mlp", "embed")

# The score that a criterion for layers reads, where it is no layout: `layers` [layers], the highest stay; `blocks`
# [layers - removed + 1], by the first layer of a contiguous block, the lowest goes; `removed` [at least removed], the
# layers in the order in which they went.
LAYER_SCORE: Mapping[str, str] = {
    "best": "layers",
    "block_importance": "layers",
    "leave_one_out": "layers",
    "taylor": "layers",
    "magnitude": "layers",
    "random": "layers",
    "angular": "blocks",
    "angular_last_token": "blocks",
    "leave_block_out": "blocks",
    "greedy": "removed",
}

_SAID = {
    "best": "by block importance, angle, loss without each or greedily, whichever does best by {metric}",
    "block_importance": "least block importance: 1 - cos(input, output) (ShortGPT)",
    "leave_one_out": "least loss without each layer (Minitron)",
    "taylor": "least first-order change of the loss",
    "magnitude": "smallest weights",
    "random": "by chance",
    "angular": "the contiguous block with the least angular distance between its ends",
    "angular_last_token": "the contiguous block with the least angular distance at the last token (Gromov et al.)",
    "leave_block_out": "the contiguous block without which the {metric} loss is lowest (Minitron in practice)",
    "greedy": "one at a time, each time the one without which the {metric} loss is lowest",
}
_WIDTHS_SAID = {
    "best": "highest activation, by the aggregation that does best by {metric}",
    "activation": "highest activation ({over_sequence} over the sequence, {over_batch} over rows; Minitron)",
    "taylor": "highest first-order change of the loss",
    "magnitude": "largest weights",
    "random": "by chance",
}


def axes_to_score(wanted: PlanConfig, source: Sizes) -> list[str]:
    """The widths whose kept indices `build_plan` will choose by score."""
    uncut = sizes_after_merge(wanted, source)
    return [axis for axis in WIDTHS if 0 < getattr(wanted, axis) < uncut[axis]]


def sizes_after_merge(wanted: PlanConfig, source: Sizes) -> dict[str, int]:
    """Sizes before any unit is dropped: the source's, or those with merged key/value heads.

    Raises:
        UserError: the heads cannot be merged in equal groups.
    """
    groups = wanted.kv_heads
    if not (wanted.merge_kv_heads and groups):
        return dict(source)
    if source["kv_heads"] % groups:
        raise UserError(
            f"plan.kv_heads: {source['kv_heads']} heads cannot be merged into {groups}; it must divide them"
        )
    return {**source, "kv_heads": groups, "q_per_kv": source["q_per_kv"] * (source["kv_heads"] // groups)}


def layers_by_score(wanted: PlanConfig) -> bool:
    """Whether `build_plan` will choose layers by a score, rather than by a layout or as told."""
    return wanted.remove_layers > 0 and wanted.layers_by in LAYER_SCORE


def build_plan(wanted: PlanConfig, source: Sizes, scores: Scores, name: str = "", refit_rows: int = 64) -> Plan:
    """Chooses what to keep: layers by layout, by score or by hand, widths by the highest scores.

    Heads are ranked inside their group, neurons inside their layer, channels once for the whole network; ties go to
    the lowest index, and what is kept stays in its old order.

    Args:
        wanted: sizes to keep on each axis.
        source: the sizes of the model.
        scores: a score shaped like each axis of `axes_to_score`, in source sizes; and where layers go by score, the
            one that `LAYER_SCORE` names.
        name: what the source is called.
        refit_rows: calibration rows of the fit, where one is wanted.

    Raises:
        UserError: a size is larger than the source's, or the plan that results is one that `check` refuses.
    """
    uncut = sizes_after_merge(wanted, source)
    for axis in (*WIDTHS, "vocab"):
        if getattr(wanted, axis) > uncut[axis]:
            raise UserError(f"plan.{axis}: {getattr(wanted, axis)} is more than the {uncut[axis]} that the source has")
    kept: dict[str, Indices] = {}
    reasons: dict[str, str] = {}
    if wanted.layers:
        kept["layers"], reasons["layers"] = np.asarray(wanted.layers, np.int32), "chosen by hand"
    elif wanted.remove_layers:
        kept["layers"] = choose_layers(wanted, source["layers"], scores)
        reasons["layers"] = f"{_layers_said(wanted)}; {_counted(wanted.remove_layers)} removed"
    widths, edits = _choose_widths(wanted, source, scores, kept.get("layers", np.arange(source["layers"])))
    kept |= widths
    reasons |= dict.fromkeys(widths, _WIDTHS_SAID[wanted.widths_by].format(**vars(wanted)))
    if 0 < wanted.vocab < source["vocab"]:
        kept["vocab"] = np.asarray(scores.get("words", np.arange(wanted.vocab)), np.int32)
        reasons["vocab"] = "most frequent words of the calibration text, closed under merges"
        if kept["vocab"][-1] < wanted.vocab:
            reasons["vocab"] = "rows beyond the tokenizer dropped"
    if wanted.refit and (kept or edits):
        edits.append(Refit(wanted.ridge, refit_rows))
    plan = Plan(dict(source), kept, reasons, name, tuple(edits), _ranked_by(wanted) if widths else {})
    check(plan)
    return plan


def _ranked_by(wanted: PlanConfig) -> dict[str, str]:
    """`Plan.widths_by` of plans that this config leads to."""
    fields = ("over_batch", "over_sequence", "iterations") if wanted.widths_by == "activation" else ()
    return {"scores": wanted.widths_by} | {name: str(getattr(wanted, name)) for name in fields}


def _choose_widths(
    wanted: PlanConfig, source: Sizes, scores: Scores, layers: Indices
) -> tuple[dict[str, Indices], list[Edit]]:
    """Kept indices of every width that is cut, and the edits of heads."""
    kept: dict[str, Indices] = {}
    merge = _merge(wanted, source, layers, scores)
    edits: list[Edit] = [merge] if merge else []
    axes, multi_head = axes_to_score(wanted, source), sizes_after_merge(wanted, source)["q_per_kv"] == 1
    if wanted.head_residual != "off" and "kv_heads" in axes and "q_per_kv" not in axes and not multi_head:
        raise UserError(
            "plan.head_residual: where query heads share KV heads, only query heads leave one (Minitron); "
            "cut plan.q_per_kv too, or set it to off"
        )
    for axis in axes:
        score = scores[axis] if axis == "embed" else scores[axis][layers]
        if axis == "q_per_kv" and merge:
            score = merged_score(score, merge)
        if axis == "q_per_kv" and "kv_heads" in kept:
            score = np.take_along_axis(score, kept["kv_heads"][..., None], axis=1)
        kept[axis] = top(score, getattr(wanted, axis))
        if wanted.head_residual != "off" and (axis == "q_per_kv" or axis == "kv_heads" and multi_head):
            edits.append(head_residual(score, kept[axis], wanted.head_residual, axis))
    return kept, edits


def _merge(wanted: PlanConfig, source: Sizes, layers: Int[np.ndarray, "kept"], scores: Scores) -> MergeKvHeads | None:
    if not (wanted.merge_kv_heads and 0 < wanted.kv_heads < source["kv_heads"]):
        return None
    members = source["kv_heads"] // wanted.kv_heads
    if "kv_similarity" in scores:
        return MergeKvHeads(group_heads(scores["kv_similarity"][layers], members))
    return MergeKvHeads(neighbours(len(layers), source["kv_heads"], members))


def choose_layers(wanted: PlanConfig, layers: int, scores: Scores) -> Int[np.ndarray, "kept"]:
    """The layers that stay when `wanted.remove_layers` go, ascending.

    Raises:
        UserError: fewer than one would stay, or than the layout needs.
    """
    removed, by = wanted.remove_layers, wanted.layers_by
    if by in get_args(Layout):
        return np.asarray(kept_layers(by, layers, removed), np.int32)
    if removed >= layers:
        raise UserError(f"plan.remove_layers: {removed} of {layers} layers; use 0 to {layers - 1}")
    kind = LAYER_SCORE[by]
    score = scores[kind]
    if kind == "layers":
        return top(score, layers - removed)
    gone = score[:removed] if kind == "removed" else np.arange(removed) + np.argmin(score)
    return np.setdiff1d(np.arange(layers), gone).astype(np.int32)


def top(score: Float[np.ndarray, "*around size"], count: int) -> Int[np.ndarray, "*around count"]:
    """Indices of the `count` highest scores along the last axis, ascending; ties go to the lowest index."""
    best = np.argsort(-score, axis=-1, kind="stable")[..., :count]
    return np.sort(best, axis=-1).astype(np.int32)


def _counted(layers: int) -> str:
    return f"{layers} layer{'' if layers == 1 else 's'}"


def _layers_said(wanted: PlanConfig) -> str:
    if wanted.layers_by in get_args(Layout):
        return f"layout {wanted.layers_by!r} of Just CHOP"
    return _SAID[wanted.layers_by].format(metric=wanted.metric)
