"""Attention over packed sequences: one function, whatever computes it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def visible(
    q_positions: Int[Array, "batch length"],
    kv_positions: Int[Array, "batch source"],
    q_segments: Int[Array, "batch length"],
    kv_segments: Int[Array, "batch source"],
    window: int | None,
) -> Bool[Array, "batch length source"]:
    """Which keys a query sees: its own segment, not after itself, fewer than `window` positions back."""
    distance = q_positions[:, :, None] - kv_positions[:, None, :]
    seen = (distance >= 0) & (q_segments[:, :, None] == kv_segments[:, None, :])
    return seen if window is None else seen & (distance < window)


def attention(
    q: Float[Array, "batch length kv_heads q_per_kv head_dim"],
    k: Float[Array, "batch source kv_heads head_dim"],
    v: Float[Array, "batch source kv_heads head_dim"],
    mask: Bool[Array, "batch length source"],
) -> Float[Array, "batch length kv_heads q_per_kv head_dim"]:
    """Scaled dot-product attention with grouped queries; softmax in float32, output in the dtype of `v`.

    The scale is head_dim ** -0.5 of the whole head, which no chop changes. Every query must see at least one key.
    """
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None, :, :], scores * q.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v)
