"""The TPU kernel, interpreted, against the reference: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from aot.slices import needs_libtpu
from jax.sharding import NamedSharding, PartitionSpec

from chopjax.aot import hlo, topology
from chopjax.models import splash
from chopjax.models.attention import Places, attention
from chopjax.models.splash import blocks, padded_head, splash_attention
from chopjax.sharding.mesh import Constrain, make_mesh
from chopjax.sharding.rules import MeshConfig


def example(length: int, kv_heads: int, q_per_kv: int, head_dim: int) -> tuple[list[jax.Array], Places]:
    """q, k, v and a cotangent of two rows; one of three segments of odd lengths and padding, the other of one."""
    rng = np.random.default_rng(length)
    grouped, single = (2, length, kv_heads, q_per_kv, head_dim), (2, length, kv_heads, head_dim)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (grouped, single, single, grouped)]
    starts = np.asarray([0, length // 3, length // 2, length - 4])
    segment = np.searchsorted(starts, np.arange(length), side="right") - 1
    segments = np.stack([np.asarray([1, 2, 3, 0])[segment], np.ones(length)])
    positions = np.stack([np.arange(length) - starts[segment], np.arange(length)])
    return arrays, Places(jnp.asarray(positions, jnp.int32), jnp.asarray(segments, jnp.int32))


# Lengths below a block, of several uneven ones; odd heads; sizes of a head that have to be filled up.
@pytest.mark.parametrize(
    ("length", "kv_heads", "q_per_kv", "head_dim", "window"),
    [
        (77, 3, 3, 6, None),
        (130, 1, 5, 80, 9),
        (1000, 2, 1, 130, 150),
    ],
)
def test_as_the_reference(length: int, kv_heads: int, q_per_kv: int, head_dim: int, window: int | None) -> None:
    (q, k, v, cotangent), places = example(length, kv_heads, q_per_kv, head_dim)
    wanted, wanted_back = jax.vjp(lambda *qkv: attention(*qkv, places, places, window), q, k, v)
    found, found_back = jax.jit(
        lambda *qkv: jax.vjp(lambda *qkv: splash_attention(*qkv, places.segments, window, interpret=True), *qkv)
    )(q, k, v)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    for one, other in zip(found_back(cotangent), wanted_back(cotangent), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6 * float(jnp.abs(other).max()) + 2e-6)


# Queries of a part fill it up to a whole block, or not; windows reach over borders of parts.
@pytest.mark.parametrize(("length", "shards", "window"), [(45, 3, None), (150, 2, 40)])
def test_queries_that_are_a_part_of_the_row(length: int, shards: int, window: int | None) -> None:
    (q, k, v, cotangent), places = example(length, 1, 2, 6)

    def by_part(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        part = jax.vmap(
            lambda shard, q: splash_attention(q, k, v, places.segments, window, True, shard=shard, shards=shards)
        )
        parts = jnp.stack(jnp.split(q, shards, axis=1))
        return jnp.concatenate(list(part(jnp.arange(shards), parts)), axis=1)

    wanted, wanted_back = jax.vjp(lambda *qkv: attention(*qkv, places, places, window), q, k, v)
    found, found_back = jax.jit(lambda *qkv: jax.vjp(by_part, *qkv))(q, k, v)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    for one, other in zip(found_back(cotangent), wanted_back(cotangent), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6 * float(jnp.abs(other).max()) + 2e-6)


def compiled(chips: int, length: int, kv_heads: int, q_per_kv: int, head_dim: int, window: int | None) -> str:
    """The program of attention forward and backward on so many chips, each with a part of the rows' length."""
    devices = topology.devices("v5e:2x2")[:chips]
    mesh = make_mesh(MeshConfig(fsdp=1, context=chips), devices)
    pin, rows = Constrain(mesh), NamedSharding(mesh, PartitionSpec(None, "context"))
    grouped, single = (2, length, kv_heads, q_per_kv, head_dim), (2, length, kv_heads, head_dim)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=rows) for shape in (grouped, single, single)]
    where = jax.ShapeDtypeStruct((2, length), jnp.int32, sharding=rows)

    def both(q: jax.Array, k: jax.Array, v: jax.Array, places: Places) -> tuple[jax.Array, ...]:
        out, back = jax.vjp(lambda *qkv: pin.attention(*qkv, places, places, window, True), q, k, v)
        return out, *back(out)

    return jax.jit(both).lower(*arrays, Places(where, where)).compile().as_text()


@needs_libtpu
@pytest.mark.parametrize("head_dim", [64, 72, 80, 96, 128, 200, 256])
def test_compiles_for_tpus(head_dim: int) -> None:
    """In bfloat16, though products of float32 are to be exact here; for any number of heads and an odd length."""
    assert jax.config.jax_default_matmul_precision == "highest"
    text = compiled(1, 300, 1, 3, head_dim, None)
    for kernel in ("splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv"):
        assert kernel in text


@needs_libtpu
@pytest.mark.parametrize(("length", "window"), [(4 * 300, None), (4 * 1024, 700)])
def test_compiles_for_tpus_that_share_rows(length: int, window: int | None) -> None:
    text = compiled(4, length, 2, 2, 128, window)
    assert "splash_mha_dkv" in text
    kinds = hlo.statistics(text).collectives
    assert kinds["all-gather"] == 3  # keys, values and segments
    if length % 512 == 0:
        assert kinds.keys() == {"all-gather", "reduce-scatter"}  # of gradients of keys and values


def test_bfloat16_keeps_its_dtype_and_softmax_in_float32() -> None:
    arrays, places = example(40, 2, 2, 16)
    half = [array.astype(jnp.bfloat16) for array in arrays[:3]]
    found = splash_attention(*half, places.segments, interpret=True)
    exact = attention(*(array.astype(jnp.float32) for array in half), places, places)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.02)


@pytest.mark.parametrize(
    ("length", "wanted"),
    [
        (1, (128, 128)),
        (128, (128, 128)),
        (129, (256, 256)),
        (513, (384, 768)),
        (1000, (512, 1024)),
        (4096, (512, 4096)),
    ],
)
def test_blocks(length: int, wanted: tuple[int, int]) -> None:
    assert blocks(length) == wanted


@pytest.mark.parametrize("length", [100, 1000, 3000, 4096])
@pytest.mark.parametrize("window", [None, 1, 2, 512, 513, 514, 1100])
def test_flops_are_of_the_blocks_that_the_kernel_computes(length: int, window: int | None) -> None:
    block, padded = blocks(length)
    kernel = splash._kernel(3, (length, padded, block), (padded, block), window, True, 1)
    computed = np.count_nonzero(np.asarray(kernel.fwd_mask_info.block_mask))  # one mask for all heads
    assert splash.flops(length, 3, 72, window) == 2 * 2 * 3 * computed * block**2 * 80


def test_heads_are_filled_up_to_what_the_kernel_takes() -> None:
    assert [padded_head(size) for size in (5, 64, 65, 80, 96, 100, 128, 130, 256)] == [
        64, 64, 80, 80, 96, 128, 128, 256, 256,
    ]  # fmt: skip
