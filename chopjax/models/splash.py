"""Attention as one Pallas kernel for TPUs: scores never leave the chip's own memory. Same results as the reference."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jaxtyping import Array, Float, Int

# Blocks of queries and of keys are multiples of the vector lanes, and at most so long.
LANES, LONGEST_BLOCK = 128, 512
# Sizes of a head below a full vector that the kernel takes; others are filled up with zeros.
NARROW_HEADS = (64, 80, 96, 128)


def splash_attention(
    q: Float[Array, "batch length kv_heads q_per_kv head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    segments: Int[Array, "batch length"],
    window: int | None = None,
    interpret: bool = False,
) -> Float[Array, "batch length kv_heads q_per_kv head_dim"]:
    """Causal attention within segments; softmax in float32, output in the dtype of `v`.

    It equals `models.attention.attention` of tokens that are in order: each segment's tokens stand side by side and
    their positions rise by one, so that the place in the row can stand for the position. For one device; under a mesh
    each calls it on its own rows and heads.

    Args:
        q: queries.
        k: keys.
        v: values.
        segments: the segment of each token; a token sees its own only.
        window: tokens that a query sees, itself included; None for all before it.
        interpret: run the kernel as ordinary JAX operations, on any device; slow, for tests.
    """
    batch, length, kv_heads, q_per_kv, head_dim = q.shape
    block, padded = blocks(length)
    kernel = _kernel(kv_heads * q_per_kv, padded, block, window, interpret)
    scaled = (q.astype(jnp.float32) * head_dim**-0.5).astype(q.dtype)

    def heads_first(x: Array) -> Array:
        """[batch, length, ..., head_dim] → [batch, heads, padded length, padded head_dim]."""
        x = jnp.swapaxes(x.reshape(batch, length, -1, head_dim), 1, 2)
        return jnp.pad(x, ((0, 0), (0, 0), (0, padded - length), (0, padded_head(head_dim) - head_dim)))

    # What fills up the row stands after all queries, so none of them sees it.
    places = jnp.pad(segments, ((0, 0), (0, padded - length)))
    # The kernel relies on implicit promotion.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rows: Callable[..., Any] = jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=pallas.SegmentIds(s, s)))
        out = rows(heads_first(scaled), heads_first(k), heads_first(v), places)
    out = jnp.swapaxes(out[:, :, :length, :head_dim], 1, 2)
    return out.reshape(q.shape).astype(v.dtype)


def blocks(length: int) -> tuple[int, int]:
    """Length of a block, and of the row filled up to a whole number of them: as few and as short as that allows."""
    number = math.ceil(length / LONGEST_BLOCK)
    block = math.ceil(length / number / LANES) * LANES
    return block, number * block


def padded_head(head_dim: int) -> int:
    """The smallest size of a head that the kernel takes and that holds `head_dim`."""
    return next((size for size in NARROW_HEADS if head_dim <= size), math.ceil(head_dim / LANES) * LANES)


def _kernel(
    heads: int, length: int, block: int, window: int | None, interpret: bool
) -> pallas.splash_attention_kernel.SplashAttentionKernel:
    shape = (length, length)
    mask = pallas.CausalMask(shape) if window is None else pallas.LocalMask(shape, (window - 1, 0), 0)
    # One fused kernel for the backward pass would keep a part of the queries' gradient for each block of keys.
    sizes = pallas.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    return pallas.make_splash_mha(
        pallas.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )
