"""Attention over packed sequences: one function, whatever computes it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Queries are worked through in at most this many blocks of at least this length. More of them save little more work,
# and each is compiled.
BLOCKS, SHORTEST_BLOCK = 8, 64


class Places(NamedTuple):
    """Where tokens stand: their position in their sequence, and the segment of the row that the sequence is."""

    positions: Int[Array, "batch length"]
    segments: Int[Array, "batch length"]

    def between(self, start: int, end: int) -> "Places":
        """The places of the tokens of a row from `start` to `end`."""
        return Places(self.positions[:, start:end], self.segments[:, start:end])


def visible(queries: Places, keys: Places, window: int | None) -> Bool[Array, "batch length source"]:
    """Which keys a query sees: its own segment, not after itself, fewer than `window` positions back."""
    distance = queries.positions[:, :, None] - keys.positions[:, None, :]
    seen = (distance >= 0) & (queries.segments[:, :, None] == keys.segments[:, None, :])
    return seen if window is None else seen & (distance < window)


def attention(
    q: Float[Array, "batch length kv_heads q_per_kv head_dim"],
    k: Float[Array, "batch source kv_heads head_dim"],
    v: Float[Array, "batch source kv_heads head_dim"],
    queries: Places,
    keys: Places,
    window: int | None = None,
    in_order: bool = False,
) -> Float[Array, "batch length kv_heads q_per_kv head_dim"]:
    """Scaled dot-product attention with grouped queries; softmax in float32, output in the dtype of `v`.

    The scale is head_dim ** -0.5 of the whole head, which no chop changes. Every query must see at least one key.

    Args:
        q: queries.
        k: keys.
        v: values.
        queries: where the queries stand.
        keys: where the keys stand.
        window: tokens that a query sees, itself included; None for all before it.
        in_order: queries and keys are the same tokens, and positions rise along each segment. Then what lies after a
            block of queries, or before its window, is left out: about half of the work.
    """
    length = q.shape[1]
    block = max(SHORTEST_BLOCK, -(-length // BLOCKS)) if in_order else length
    parts = []
    for start in range(0, length, block):
        end = min(start + block, length)
        first, last = (max(0, start - (window or length) + 1), end) if in_order else (0, k.shape[1])
        mask = visible(queries.between(start, end), keys.between(first, last), window)
        parts.append(_dense(q[:, start:end], k[:, first:last], v[:, first:last], mask))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _dense(q: Array, k: Array, v: Array, mask: Bool[Array, "batch length source"]) -> Array:
    # The order of axes is that in which a product gives them, or CPUs turn arrays of this size round.
    scores = jnp.einsum("btkgh,bskh->bktgs", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, :, None, :], scores * q.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bktgs,bskh->btkgh", weights, v)
