"""Attention as one Pallas kernel for TPUs: scores never leave the chip's own memory. Same results as the reference."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jaxtyping import Array, Float, Int

# Blocks of queries and of keys are multiples of the vector lanes, and at most so long.
LANES, LONGEST_BLOCK = 128, 512
# Sizes of a head below a full vector that the kernel takes; others are filled up with zeros.
NARROW_HEADS = (64, 80, 96, 128)
# Products of the kernels: scores and their sum over values; in the backward pass, for the gradient of queries scores
# again, the gradient of weights and its sum over keys, for those of keys and values both once more and one for each.
FORWARD, BACKWARD = 2, 3 + 4


def splash_attention(
    q: Float[Array, "batch length kv_heads q_per_kv head_dim"],
    k: Float[Array, "batch source kv_heads head_dim"],
    v: Float[Array, "batch source kv_heads head_dim"],
    segments: Int[Array, "batch source"],
    window: int | None = None,
    interpret: bool = False,
    *,
    shard: Int[Array, ""] | None = None,
    shards: int = 1,
) -> Float[Array, "batch length kv_heads q_per_kv head_dim"]:
    """Causal attention within segments; softmax in float32, output in the dtype of `v`.

    It equals `models.attention.attention` of tokens that are in order: each segment's tokens stand side by side and
    their positions rise by one, so that the place in the row can stand for the position. For one device; under a mesh
    each calls it on its own rows, heads and queries.

    Products of bfloat16 are made in one pass, whatever `jax_default_matmul_precision` says: the kernel has no other.

    Args:
        q: queries; of a row that is split, one of its equal parts.
        k: keys of the whole row.
        v: values of the whole row.
        segments: the segment of each token of the whole row; a token sees its own only.
        window: tokens that a query sees, itself included; None for all before it.
        interpret: run the kernel as ordinary JAX operations, on any device; slow, for tests.
        shard: which part of the row the queries are, from 0.
        shards: parts of the row.
    """
    batch, length, kv_heads, q_per_kv, head_dim = q.shape
    source = k.shape[1]
    (q_block, q_padded), (block, padded) = blocks(length), blocks(source)
    kernel = _kernel(kv_heads * q_per_kv, (length, q_padded, q_block), (padded, block), window, interpret, shards)
    own = None
    if shard is not None:
        kernel = jax.tree.map(lambda leaf: _part(leaf, shard, shards, axis=min(1, leaf.ndim - 1)), kernel)
        own = jnp.pad(_part(segments, shard, shards, axis=1), ((0, 0), (0, q_padded - length)))
    scaled = (q.astype(jnp.float32) * head_dim**-0.5).astype(q.dtype)

    def heads_first(x: Array, padded: int) -> Array:
        """[batch, length, ..., head_dim] → [batch, heads, padded length, padded head_dim]."""
        x = jnp.swapaxes(x.reshape(batch, x.shape[1], -1, head_dim), 1, 2)
        return jnp.pad(x, ((0, 0), (0, 0), (0, padded - x.shape[2]), (0, padded_head(head_dim) - head_dim)))

    # What fills up the row stands after all queries, so none of them sees it.
    places = own, jnp.pad(segments, ((0, 0), (0, padded - source)))
    run = _in_one_pass if _several_passes(q.dtype) else _each_row
    with _tracing():
        out = run(kernel, heads_first(scaled, q_padded), heads_first(k, padded), heads_first(v, padded), *places)
    out = jnp.swapaxes(out[:, :, :length, :head_dim], 1, 2)
    return out.reshape(q.shape).astype(v.dtype)


def _part(x: Array, part: Int[Array, ""], parts: int, axis: int) -> Array:
    size = x.shape[axis] // parts
    return jax.lax.dynamic_slice_in_dim(x, part * size, size, axis)


def _each_row(kernel: Any, q: Array, k: Array, v: Array, own: Array | None, segments: Array) -> Array:
    """The kernel on every row of a batch; `own` are the segments of the queries, if not those of the keys."""

    def one(q: Array, k: Array, v: Array, own: Array | None, segments: Array) -> Array:
        return kernel(q, k, v, segment_ids=pallas.SegmentIds(segments if own is None else own, segments))

    return jax.vmap(one)(q, k, v, own, segments)


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
    """What holds while the kernel is traced: it relies on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _several_passes(dtype: jnp.dtype) -> bool:
    """Whether products of bfloat16 are wanted as the kernel cannot make them."""
    wanted = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return dtype == jnp.bfloat16 and wanted not in (None, "default", "bfloat16")


# `_each_row` without such products. Its derivative is wrapped as well, because kernels of the backward pass are traced
# later than those of the forward. Only where it is needed: so wrapped, XLA finds a schedule that takes more memory.
@jax.custom_vjp
def _in_one_pass(kernel: Any, q: Array, k: Array, v: Array, own: Array | None, segments: Array) -> Array:
    return _forward(kernel, q, k, v, own, segments)[0]


def _forward(
    kernel: Any, q: Array, k: Array, v: Array, own: Array | None, segments: Array
) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array]]]:
    with _tracing(), jax.default_matmul_precision("default"):
        return jax.vjp(lambda q, k, v: _each_row(kernel, q, k, v, own, segments), q, k, v)


def _backward(back: Callable[[Array], tuple[Array, Array, Array]], d_out: Array) -> tuple[Array | None, ...]:
    with _tracing(), jax.default_matmul_precision("default"):
        return (None, *back(d_out), None, None)


_in_one_pass.defvjp(_forward, _backward)


def blocks(length: int) -> tuple[int, int]:
    """Length of a block, and of the row filled up to a whole number of them: as few and as short as that allows."""
    number = math.ceil(length / LONGEST_BLOCK)
    block = math.ceil(length / number / LANES) * LANES
    return block, number * block


def block_pairs(length: int, window: int | None = None) -> int:
    """Pairs of a block of queries and one of keys that the kernel computes for a row: those where any key is seen."""
    block, padded = blocks(length)
    number = padded // block
    diagonals = number if window is None else min(number, 1 + (window + block - 2) // block)
    return sum(number - diagonal for diagonal in range(diagonals))


def flops(length: int, heads: int, head_dim: int, window: int | None = None, products: int = FORWARD) -> int:
    """FLOPs of the kernel on one row: whole blocks and filled-up heads, as it computes them."""
    return products * 2 * heads * block_pairs(length, window) * blocks(length)[0] ** 2 * padded_head(head_dim)


def padded_head(head_dim: int) -> int:
    """The smallest size of a head that the kernel takes and that holds `head_dim`."""
    return next((size for size in NARROW_HEADS if head_dim <= size), math.ceil(head_dim / LANES) * LANES)


def _kernel(
    heads: int,
    queries: tuple[int, int, int],
    keys: tuple[int, int],
    window: int | None,
    interpret: bool,
    shards: int,
) -> pallas.splash_attention_kernel.SplashAttentionKernel:
    """The kernel of a whole row: queries in parts, each of a length and a padded length; and their blocks."""
    length, padded, q_block = queries
    source, block = keys
    shape = (shards * padded, source)
    mask = pallas.CausalMask(shape) if window is None else pallas.LocalMask(shape, (window - 1, 0), 0)
    # Places of queries in the row; those that fill up a part stand where its last one does.
    within = np.minimum(np.arange(padded, dtype=np.int32), length - 1)
    if shards > 1:
        mask.q_sequence = (np.arange(shards, dtype=np.int32)[:, None] * length + within[None]).reshape(-1)
    # One fused kernel for the backward pass would keep a part of the queries' gradient for each block of keys.
    sizes = pallas.BlockSizes(
        block_q=q_block, block_kv=block, block_q_dkv=q_block, block_kv_dkv=block, block_q_dq=q_block, block_kv_dq=block
    )
    return pallas.make_splash_mha(
        pallas.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=shards, interpret=interpret
    )
