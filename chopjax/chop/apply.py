"""A plan applied: one pure gather along named axes, for parameters, optimizer state, configs and run-time masks.

Imports without jax: it takes numpy arrays and jax arrays alike, so that file-to-file chops need no device.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from chopjax.axes import AROUND, Leaf, Role, flatten, unflatten
from chopjax.chop.indices import take
from chopjax.chop.plan import Plan
from chopjax.models.config import ModelConfig


def gather(array: Any, leaf: Leaf, plan: Plan) -> Any:
    """The part of one parameter that `plan` keeps, each edit applied just before the gather along its axis.

    Args:
        array: numpy or jax array with the axes of `leaf`, in source sizes.
        leaf: the declaration that names them.
        plan: what to keep.

    Returns:
        An array of the same kind and dtype in student sizes; `array` itself if no axis of it is cut.
    """
    # Outer axes first: the lists of an inner axis are numbered by the student's indices of the axes around it.
    for name in AROUND:
        for edit in plan.edits:
            array = edit.apply(array, leaf) if edit.axis == name else array
        if name in plan.kept and name in leaf.axes:
            array = take(array, leaf.axes, name, plan.kept[name])
    return array


def chop_params(plan: Plan, leaves: Mapping[str, Leaf], params: Mapping[str, Any]) -> dict[str, Any]:
    """`gather` on every leaf of a nested dict; `leaves` are the declarations by flat path."""
    return unflatten({path: gather(array, leaves[path], plan) for path, array in flatten(params).items()})


def chop_config(config: ModelConfig, plan: Plan) -> ModelConfig:
    """The config of what `chop_params` returns: sizes from the plan, kinds of layer by the same gather."""
    kinds_kept = [config.kind_of_layer[layer] for layer in plan.layers]
    used = sorted(set(kinds_kept))
    sizes: dict[str, Any] = plan.sizes
    return dataclasses.replace(
        config,
        **sizes,
        kinds=tuple(config.kinds[kind] for kind in used),
        kind_of_layer=tuple(used.index(kind) for kind in kinds_kept),
    )


def split_edits(plan: Plan) -> tuple[Plan, Plan]:
    """A plan with edits as two that follow each other: the edits with what must be cut before them, and the rest.

    `gather` by the first and then by the second is `gather` by the plan. The first makes the edited model, and the
    second, which has no edits, can be tried on that as masks. Without edits the second is the plan itself.
    """
    first = {outer for edit in plan.edits if edit.axis for outer in AROUND[edit.axis]} & plan.kept.keys()
    before = Plan(plan.source, {axis: plan.kept[axis] for axis in plan.kept if axis in first}, edits=plan.edits)
    rest = {axis: indices for axis, indices in plan.kept.items() if axis not in first}
    return before, Plan(before.sizes, rest, plan.reasons, plan.name)


def masks(plan: Plan) -> dict[str, Float[np.ndarray, "*axes"]]:
    """The same plan as float32 masks on the full-width model: 1 where kept, 0 where dropped.

    `masks["mlp"]` has shape [layers, mlp] in source sizes and so on. What lies inside a dropped layer or head is 0.

    Raises:
        ValueError: the plan edits weights, which no mask can do: see `split_edits`.
    """
    if any(edit.axis for edit in plan.edits):
        raise ValueError("masks do not edit weights: take the two plans of split_edits")
    return {axis: mask(plan, axis) for axis in plan.kept}


def mask(plan: Plan, axis: str) -> Float[np.ndarray, "*axes"]:
    """Which indices of one axis stay, as `masks` says it; the axis itself need not be cut.

    Merged heads stay, and so do all of their query heads that the plan keeps.
    """
    leaf = Leaf((), (*AROUND[axis], axis), (), Role.NORM)
    shape = leaf.shape(plan.source)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    kept = np.zeros(numbers.size, np.float32)
    # The query heads of merged heads move, and every other edit leaves what stays where it is.
    kept[gather(numbers, leaf, plan if "q_per_kv" in leaf.axes else dataclasses.replace(plan, edits=()))] = 1
    return kept.reshape(shape)
