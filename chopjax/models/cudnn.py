"""Attention by cuDNN's fused kernels for NVIDIA GPUs, through `jax.nn.dot_product_attention`."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from chopjax.errors import UserError
from chopjax.models.attention import Places, visible

# Sizes of a head that the kernels take are multiples of this; others are filled up with zeros.
HEAD_MULTIPLE = 8
# Largest head on every GPU that has the kernels (from compute capability 8.0 on, Ampere), and on some.
LARGEST_HEAD, LARGEST_HEAD_OF_SOME = 128, 256
DTYPES = (jnp.bfloat16, jnp.float16)


def cudnn_attention(
    q: Float[Array, "batch length kv_heads q_per_kv head_dim"],
    k: Float[Array, "batch source kv_heads head_dim"],
    v: Float[Array, "batch source kv_heads head_dim"],
    queries: Places,
    keys: Places,
    window: int | None = None,
    in_order: bool = False,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "batch length kv_heads q_per_kv head_dim"]:
    """`models.attention.attention` of bfloat16 or float16, for one device; scores are never held whole.

    The kernels know no segments, so packed rows take a mask: [batch, 1, length, source] in the dtype of `q`, and as
    much for its unused gradient in the backward pass. That is 2 · length² bytes a row each, whatever the number of
    heads: 34 MB for 4096 tokens, 2.1 GB for 32768.

    Args:
        q: queries.
        k: keys.
        v: values.
        queries: where the queries stand.
        keys: where the keys stand.
        window: tokens that a query sees, itself included; None for all before it.
        in_order: queries and keys are the same tokens, each segment's side by side and their positions rising by one.
            Then what lies after a query is not computed at all. What lies before its window is: the kernels know
            windows, but none beside a mask.
        implementation: `xla` for the same call without cuDNN, for tests.
    """
    batch, length, kv_heads, q_per_kv, head_dim = q.shape
    source = k.shape[1]
    seen = visible(queries, keys, window)
    # With a mask the kernels of the backward pass take even lengths only.
    more, others = length % 2, source % 2
    seen = jnp.pad(seen, ((0, 0), (0, more), (0, others)))
    filled = -head_dim % HEAD_MULTIPLE
    q, k, v = (
        jnp.pad(x.reshape(batch, x.shape[1], -1, head_dim), ((0, 0), (0, added), (0, 0), (0, filled)))
        for x, added in ((q, more), (k, others), (v, others))
    )
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=seen[:, None],
        scale=head_dim**-0.5,
        is_causal=in_order,
        implementation=implementation,
    )
    return out[:, :length, :, :head_dim].reshape(batch, length, kv_heads, q_per_kv, head_dim)


def supported(dtype: jax.typing.DTypeLike, head_dim: int, capability: str) -> bool:
    """Whether every GPU of this compute capability, such as "9.0", has kernels for such heads."""
    try:
        version = tuple(int(part) for part in capability.split("."))
    except ValueError:
        return False
    return version >= (8, 0) and dtype in DTYPES and head_dim <= LARGEST_HEAD


def refuse_unsupported(dtype: jax.typing.DTypeLike, head_dim: int) -> None:
    """Refuses what cuDNN has no kernel for on any GPU.

    Raises:
        UserError: names the dtype or the size of a head.
    """
    if dtype not in DTYPES:
        name = jnp.dtype(dtype).name
        raise UserError(f"mesh.attention is 'cudnn', which takes bfloat16 and float16, not {name}; choose 'auto'")
    if head_dim > LARGEST_HEAD_OF_SOME:
        raise UserError(
            f"mesh.attention is 'cudnn', whose heads have at most {LARGEST_HEAD_OF_SOME}, not {head_dim}; choose 'auto'"
        )
