"""From sizes and scores to a plan."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from chopjax.axes import Sizes
from chopjax.chop.config import PlanConfig
from chopjax.chop.layouts import kept_layers
from chopjax.chop.plan import Plan, check
from chopjax.errors import UserError

Scores = Mapping[str, Float[np.ndarray, "..."]]

SCORED = ("kv_heads", "q_per_kv", "mlp", "embed")


def axes_to_score(wanted: PlanConfig, source: Sizes) -> list[str]:
    """The axes whose kept indices `build_plan` will choose by score."""
    return [axis for axis in SCORED if 0 < getattr(wanted, axis) < source[axis]]


def build_plan(wanted: PlanConfig, source: Sizes, scores: Scores, name: str = "") -> Plan:
    """Chooses what to keep: layers by layout or by hand, widths by the highest scores.

    Heads are ranked inside their group, neurons inside their layer, channels once for the whole network; ties go to
    the lowest index, and what is kept stays in its old order.

    Args:
        wanted: sizes to keep on each axis.
        source: the sizes of the model.
        scores: a score shaped like each axis of `axes_to_score`, in source sizes.
        name: what the source is called.

    Raises:
        UserError: a size is larger than the source's, or the plan that results is one that `check` refuses.
    """
    for axis in (*SCORED, "vocab"):
        if getattr(wanted, axis) > source[axis]:
            raise UserError(f"plan.{axis}: {getattr(wanted, axis)} is more than the {source[axis]} that the source has")
    kept: dict[str, Int[np.ndarray, "*around kept"]] = {}
    reasons: dict[str, str] = {}
    if wanted.layers:
        kept["layers"], reasons["layers"] = np.asarray(wanted.layers, np.int32), "chosen by hand"
    elif wanted.remove_layers:
        kept["layers"] = np.asarray(kept_layers(wanted.layers_by, source["layers"], wanted.remove_layers), np.int32)
        reasons["layers"] = f"layout {wanted.layers_by!r} of Just CHOP, {wanted.remove_layers} layers removed"
    layers = kept.get("layers", np.arange(source["layers"]))
    for axis in axes_to_score(wanted, source):
        score = scores[axis] if axis == "embed" else scores[axis][layers]
        if axis == "q_per_kv" and "kv_heads" in kept:
            score = np.take_along_axis(score, kept["kv_heads"][..., None], axis=1)
        kept[axis] = top(score, getattr(wanted, axis))
        reasons[axis] = "highest mean activation (mean over the sequence, L2 over samples; Minitron)"
    if 0 < wanted.vocab < source["vocab"]:
        kept["vocab"], reasons["vocab"] = np.arange(wanted.vocab, dtype=np.int32), "rows beyond the tokenizer dropped"
    plan = Plan(dict(source), kept, reasons, name)
    check(plan)
    return plan


def top(score: Float[np.ndarray, "*around size"], count: int) -> Int[np.ndarray, "*around count"]:
    """Indices of the `count` highest scores along the last axis, ascending; ties go to the lowest index."""
    best = np.argsort(-score, axis=-1, kind="stable")[..., :count]
    return np.sort(best, axis=-1).astype(np.int32)
