"""What remat policies keep on the device and on the host, compiled for a TPU; gradients are tested in test_decoder."""

import functools

import jax
import jax.numpy as jnp
from aot.slices import needs_libtpu

from chopjax.aot import topology
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import abstract_params, forward
from chopjax.sharding.mesh import Constrain, batch_sharding, make_mesh, param_shardings
from chopjax.sharding.rules import MeshConfig

CONFIG = ModelConfig(layers=64, embed=256, kv_heads=2, q_per_kv=2, head_dim=64, mlp=512, vocab=512, positions=2048)
ROWS, LENGTH = 16, 512  # a layer is compiled once, a longer row takes longer
INPUTS = CONFIG.layers * ROWS // 2 * LENGTH * CONFIG.embed * 2
"""Bytes of all blocks' inputs in bfloat16 on each chip: half of the rows."""


@functools.cache
def memory(remat: str) -> tuple[int, int]:
    """Bytes of temporaries of a gradient, on a chip and on its host."""
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), topology.devices("v5e:2x2"))
    params = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        abstract_params(CONFIG, jnp.bfloat16),
        param_shardings(CONFIG, mesh),
    )
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32, sharding=batch_sharding(mesh))

    def loss(params: dict, tokens: jax.Array) -> jax.Array:
        hidden = forward(CONFIG, params, tokens, remat=remat, constrain=Constrain(mesh)).hidden
        return jnp.sum(jnp.square(hidden.astype(jnp.float32)))

    found = jax.jit(jax.grad(loss)).lower(params, tokens).compile().memory_analysis()
    return found.temp_size_in_bytes, found.host_temp_size_in_bytes


@needs_libtpu
def test_inputs_of_blocks_wait_on_the_host() -> None:
    (device, host), (before, none) = memory("offload"), memory("full")
    assert none == 0 and host == INPUTS
    assert device < before - INPUTS / 2


@needs_libtpu
def test_products_wait_on_the_host() -> None:
    device, host = memory("offload_dots")
    assert host > 4 * INPUTS
    assert device < host / 2
