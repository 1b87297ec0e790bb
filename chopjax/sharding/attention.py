"""Attention on a mesh: which kernel, and how each device runs it on its own rows, heads and part of the length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from chopjax.errors import UserError
from chopjax.models import cudnn
from chopjax.models.attention import Places, attention
from chopjax.models.constrain import KEYS, QUERIES
from chopjax.models.splash import splash_attention
from chopjax.sharding.rules import Kernel

if TYPE_CHECKING:
    from chopjax.sharding.mesh import Constrain


def attention_on_mesh(
    pin: Constrain,
    q: Float[Array, "batch length kv_heads q_per_kv head_dim"],
    k: Float[Array, "batch source kv_heads head_dim"],
    v: Float[Array, "batch source kv_heads head_dim"],
    queries: Places,
    keys: Places,
    window: int | None,
    in_order: bool,
) -> Float[Array, "batch length kv_heads q_per_kv head_dim"]:
    """`models.attention.attention` by the kernel that serves.

    Where rows are split along their length, each device has its own queries and gathers all keys and values; their
    gradients are reduce-scattered.

    Raises:
        UserError: a size does not divide and no fallback is permitted; or the kernel that was asked for takes no such
            heads or dtype.
    """
    kernel = chosen(pin.kernel, pin.mesh, q) if in_order else "reference"
    over = pin.parts("length")
    if kernel == "reference" and not (in_order and over):
        return attention(q, k, v, queries, keys, window, in_order)
    shards = pin.size(over)

    def on_device(q: Array, k: Array, v: Array, positions: Array, segments: Array) -> Array:
        queries = keys = Places(positions, segments)
        shard = None
        if over:
            k, v, *places = (jax.lax.all_gather(x, over, axis=1, tiled=True) for x in (k, v, *queries))
            keys, shard = Places(*places), jax.lax.axis_index(over)
        if kernel == "splash":
            interpret = platform_of(pin.mesh) != "tpu"
            return splash_attention(q, k, v, keys.segments, window, interpret, shard=shard, shards=shards)
        if kernel == "cudnn":
            return cudnn.cudnn_attention(q, k, v, queries, keys, window, in_order=not over)
        return attention(q, k, v, queries, keys, window)

    of_q, of_k, of_rows = pin.spec(q, QUERIES), pin.spec(k, KEYS), pin.spec(queries.segments, KEYS[:2])
    # Unchecked: a Pallas call does not say over which axes its results differ.
    by_device = jax.shard_map(
        on_device, mesh=pin.mesh, in_specs=(of_q, of_k, of_k, of_rows, of_rows), out_specs=of_q, check_vma=False
    )
    return by_device(q, k, v, *queries)


def chosen(kernel: Kernel, mesh: object, q: Float[Array, "batch length kv_heads q_per_kv head_dim"]) -> Kernel:
    """What computes the attention of tokens in order: `kernel`, or in place of `auto` what suits the devices.

    Raises:
        UserError: as `refuse_unsupported`.
    """
    platform = platform_of(mesh)
    refuse_unsupported(kernel, platform, q.dtype, q.shape[-1])
    if kernel != "auto":
        return kernel
    if platform == "tpu":
        return "splash"
    device = mesh.devices.flat[0] if isinstance(mesh, Mesh) else None
    if platform == "gpu" and cudnn.supported(q.dtype, q.shape[-1], getattr(device, "compute_capability", "")):
        return "cudnn"
    return "reference"


def refuse_unsupported(kernel: Kernel, platform: str, dtype: jax.typing.DTypeLike, head_dim: int) -> None:
    """Refuses a kernel that the devices do not have, for use before any work too.

    Args:
        kernel: `mesh.attention`.
        platform: of the devices, as `platform_of` says it.
        dtype: of activations.
        head_dim: size of a head.

    Raises:
        UserError: cuDNN was asked for where there is no GPU, or takes no such heads or dtype.
    """
    if kernel != "cudnn":
        return
    if platform not in ("gpu", ""):
        raise UserError(
            f"mesh.attention is 'cudnn', which is for NVIDIA GPUs, and the devices are {platform.upper()}s; "
            "choose 'auto'"
        )
    cudnn.refuse_unsupported(dtype, head_dim)


def platform_of(mesh: object) -> str:
    """`cpu`, `gpu` or `tpu`: what the mesh's devices are; nothing where it has none."""
    if not isinstance(mesh, Mesh):
        return ""
    platform = mesh.devices.flat[0].platform
    return "gpu" if platform == "cuda" else platform
