"""A plan applied: one pure gather along named axes, for parameters, optimizer state, configs and run-time masks.

Imports without jax: it takes numpy arrays and jax arrays alike, so that file-to-file chops need no device.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from chopjax.axes import AROUND, Leaf, flatten, unflatten
from chopjax.chop.plan import Plan
from chopjax.models.config import ModelConfig


def gather(array: Any, leaf: Leaf, plan: Plan) -> Any:
    """The part of one parameter that `plan` keeps.

    Args:
        array: numpy or jax array with the axes of `leaf`, in source sizes.
        leaf: the declaration that names them.
        plan: what to keep.

    Returns:
        An array of the same kind and dtype in student sizes; `array` itself if no axis of it is cut.
    """
    # Outer axes first: the lists of an inner axis are numbered by the student's indices of the axes around it.
    for name in AROUND:
        if name in plan.kept and name in leaf.axes:
            array = _take(array, leaf.axes, name, plan.kept[name])
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


def masks(plan: Plan) -> dict[str, Float[np.ndarray, "*axes"]]:
    """The same plan as float32 masks on the full-width model: 1 where kept, 0 where dropped.

    `masks["mlp"]` has shape [layers, mlp] in source sizes and so on. What lies inside a dropped layer or head is 0.
    """
    return {axis: mask(plan, axis) for axis in plan.kept}


def mask(plan: Plan, axis: str) -> Float[np.ndarray, "*axes"]:
    """`masks` of one axis, which itself need not be cut: 0 inside what is dropped of the axes around it."""
    names = (*AROUND[axis], axis)
    kept = np.zeros([plan.source[name] for name in names], np.float32)
    index: list[Any] = []
    for depth, name in enumerate(names):
        # Source numbers of this axis for each student index of the axes around it, broadcast against all names.
        rows = plan.kept.get(name, np.arange(plan.source[name]))
        shape = [1] * len(names)
        if name in plan.kept:
            for around in AROUND[name]:
                shape[names.index(around)] = plan.sizes[around]
        shape[depth] = plan.sizes[name]
        index.append(rows.reshape(shape))
    kept[tuple(index)] = 1
    return kept


def _take(array: Any, axes: tuple[str, ...], name: str, indices: np.ndarray) -> Any:
    xp, at = array.__array_namespace__(), axes.index(name)
    around = [axes.index(outer) for outer in AROUND[name]]
    if math.prod(array.shape[axis] for axis in around) == 1:
        return xp.take(array, xp.asarray(indices.reshape(-1)), axis=at)
    shape = [1] * array.ndim
    for axis in (*around, at):
        shape[axis] = array.shape[axis]
    shape[at] = indices.shape[-1]
    return xp.take_along_axis(array, xp.asarray(indices.reshape(shape)), axis=at)
