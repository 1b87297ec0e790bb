"""Activations of some layers alone, carried out of the scan over layers.

What a scan returns for each step is stacked along all layers. Here the carry holds one slot for each layer that is
asked for, and each layer overwrites the slot of the next such layer: memory is that of the layers asked for, and the
backward pass carries as many cotangents and saves nothing. For a student of 12 layers and a teacher of 16, compiled for
a CPU, stacking all layers and picking afterwards took 6.6 times this memory with one pair of layers and 1.6 times with
12 of them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from chopjax.models.block import ACTIVATION_AXES
from chopjax.models.constrain import Constrain

Keep = Mapping[str, tuple[int, ...]]
"""Name of an activation (`models.block.ACTIVATION_AXES`) → ascending layers, from 0, of which it is kept."""


def empty(
    keep: Keep, sizes: Mapping[str, int], dtype: jax.typing.DTypeLike, constrain: Constrain
) -> dict[str, Float[Array, "kept batch length *rest"]]:
    """Zeros in place of all that is to be kept.

    Args:
        keep: what is kept.
        sizes: size of every axis, `batch` and `length` among them.
        dtype: of the activations.
        constrain: pins activation shardings.
    """
    slots = {}
    for name, layers in keep.items():
        axes = ACTIVATION_AXES[name]
        zeros = jnp.zeros((len(layers), *(sizes[axis] for axis in axes)), dtype)
        slots[name] = constrain(zeros, (None, *axes))
    return slots


def slot_of_layer(keep: Keep, layers: int) -> dict[str, Int[np.ndarray, "layers"]]:
    """For each layer the slot that it writes to; the number of slots for layers after the last one kept.

    Raises:
        ValueError: layers that do not ascend, or that the model does not have.
    """
    for name, kept in keep.items():
        if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= layers:
            raise ValueError(f"keep[{name!r}] is {kept}: not ascending layers of {layers}")
    return {name: np.searchsorted(kept, np.arange(layers)).astype(np.int32) for name, kept in keep.items()}


def put(slots: dict[str, Array], activations: Mapping[str, Any], at: Mapping[str, Array]) -> dict[str, Array]:
    """One layer's activations written to their slots; nothing is written after the last slot."""

    def write(held: Array, new: Array, slot: Array) -> Array:
        last = held.shape[0] - 1
        inside = jnp.minimum(slot, last)
        old = jax.lax.dynamic_index_in_dim(held, inside, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(held, jnp.where(slot > last, old, new), inside, 0)

    return {name: write(held, activations[name], at[name]) for name, held in slots.items()}
