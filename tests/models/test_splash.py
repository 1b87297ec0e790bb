"""The TPU kernel, interpreted, against the reference: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models.attention import Places, attention
from chopjax.models.splash import LONGEST_BLOCK, blocks, padded_head, splash_attention


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
        (37, 3, 3, 6, None),
        (130, 1, 5, 80, 9),
        (LONGEST_BLOCK + 73, 2, 1, 130, 150),
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


def test_heads_are_filled_up_to_what_the_kernel_takes() -> None:
    assert [padded_head(size) for size in (5, 64, 65, 80, 96, 100, 128, 130, 256)] == [
        64, 64, 80, 80, 96, 128, 128, 256, 256,
    ]  # fmt: skip
