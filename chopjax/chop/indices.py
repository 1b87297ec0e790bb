"""Lists of indices along named axes: read from JSON, and taken. Imports without jax."""

import math
from typing import Any

import numpy as np
from jaxtyping import Int

from chopjax.axes import AROUND
from chopjax.errors import UserError


def take(array: Any, axes: tuple[str, ...], name: str, indices: Int[np.ndarray, "*around kept"]) -> Any:
    """What `indices` name along the axis `name` of a numpy or jax array.

    Args:
        array: an array whose axes are called `axes`.
        axes: their names; those around `name` are among them, or the array belongs to one index of them.
        name: the axis along which is taken.
        indices: one list for each index of the axes around it.
    """
    xp, at = array.__array_namespace__(), axes.index(name)
    around = [axes.index(outer) for outer in AROUND[name]]
    if math.prod(array.shape[axis] for axis in around) == 1:
        return xp.take(array, xp.asarray(indices.reshape(-1)), axis=at)
    return xp.take_along_axis(array, xp.asarray(spread(indices, axes, name)), axis=at)


def spread(rows: np.ndarray, axes: tuple[str, ...], name: str) -> np.ndarray:
    """Rows for the axis `name`, one for each index of the axes around it, with a dimension for each of `axes`."""
    where = [axes.index(outer) for outer in (*AROUND[name], name)]
    shape = [1] * len(axes)
    for axis, size in zip(where, rows.shape, strict=True):
        shape[axis] = size
    return np.transpose(rows, np.argsort(where)).reshape(shape)


def _has_bool(rows: Any) -> bool:
    """Whether true or false, which numpy takes for 1 and 0, is in nested lists."""
    return any(map(_has_bool, rows)) if isinstance(rows, list) else isinstance(rows, bool)


def whole_numbers(field: str, rows: Any) -> Int[np.ndarray, "..."]:
    """A field of plan.json, a list or lists of indices, as int32.

    Raises:
        UserError: lists of unequal length, no list, or other than whole numbers of 32 bits.
    """
    try:
        indices = np.asarray(rows)
    except ValueError as error:
        raise UserError(f"plan.json: {field} has lists of unequal length; counts must be equal") from error
    if not indices.ndim:
        raise UserError(f"plan.json: {field} is {rows!r}; give a list of whole numbers")
    most = np.iinfo(np.int32).max
    whole = indices.dtype.kind in "iu" and not _has_bool(rows)
    if indices.size and not (whole and -most <= indices.min() and indices.max() <= most):
        raise UserError(f"plan.json: {field} must hold whole numbers, none beyond 32 bits")
    return indices.astype(np.int32)
