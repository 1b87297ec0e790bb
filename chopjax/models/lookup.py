"""Rows of the embedding table, looked up where the table lies."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chopjax.models.constrain import Constrain


def lookup(
    table: Float[Array, "vocab embed"], tokens: Int[Array, "batch length"], constrain: Constrain
) -> Float[Array, "batch length embed"]:
    """`table[tokens]`; the gradient of the table is summed in float32.

    On a mesh each device looks up its own columns for the tokens of all devices that hold other columns, and they
    exchange what they found. Gathering the table, and reducing a gradient of its size, would take more memory than all
    else at the beginning of a step: a vocabulary is larger than a batch of one row for each device.

    Args:
        table: the embedding table.
        tokens: token ids.
        constrain: the mesh (`models.constrain.Constrain`).
    """
    rows, columns = constrain.parts("vocab"), constrain.parts("embed")
    even = table.shape[0] % constrain.size(rows) == 0 and table.shape[1] % constrain.size(columns) == 0
    if not (rows or columns) or not even:
        return taken(constrain(table, ("vocab", None)), tokens)
    on_device = functools.partial(_on_device, rows, columns)
    return constrain.manual(on_device, (("vocab", "embed"), ("batch", "length")), ("batch", "length"))(table, tokens)


def _on_device(rows: tuple[str, ...], columns: tuple[str, ...], table: Array, tokens: Array) -> Array:
    """What one device does with its part of the table and its tokens."""
    if columns:
        tokens = jax.lax.all_gather(tokens, columns, tiled=True)
    if rows:
        place = tokens - jax.lax.axis_index(rows) * table.shape[0]
        mine = (place >= 0) & (place < table.shape[0])
        found = jnp.where(mine[..., None], taken(table, jnp.where(mine, place, 0)), 0)
        found = jax.lax.psum(found, rows)
    else:
        found = taken(table, tokens)
    if columns:
        found = jax.lax.all_to_all(found, columns, split_axis=0, concat_axis=2, tiled=True)
    return found


@jax.custom_vjp
def taken(table: Float[Array, "vocab embed"], tokens: Int[Array, "*tokens"]) -> Float[Array, "*tokens embed"]:
    """`table[tokens]`, differentiated in float32: a frequent token's gradient is a sum of thousands."""
    return table[tokens]


def _taken_forward(table: Array, tokens: Array) -> tuple[Array, tuple[Array, Array]]:
    return table[tokens], (tokens, jnp.zeros((table.shape[0], 0), table.dtype))


def _taken_backward(kept: tuple[Array, Array], d_found: Array) -> tuple[Array, None]:
    tokens, like = kept
    zeros = jnp.zeros((like.shape[0], d_found.shape[-1]), jnp.float32)
    return zeros.at[tokens].add(d_found.astype(jnp.float32)).astype(like.dtype), None


taken.defvjp(_taken_forward, _taken_backward)
