"""Attention by blocks against attention at once, and the kernel gradient against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models.attention import BLOCKS, SHORTEST_BLOCK, Places, attention
from chopjax.models.layers import product


@pytest.mark.parametrize("window", [None, 1, 70, 1000])
@pytest.mark.parametrize("length", [SHORTEST_BLOCK - 1, SHORTEST_BLOCK + 1, 3 * SHORTEST_BLOCK + 5])
def test_blocks_change_nothing(length: int, window: int | None) -> None:
    rng = np.random.default_rng(length)
    q, k, v = (jnp.asarray(rng.normal(size=(2, length, 3, *more, 5)), jnp.float32) for more in ((2,), (), ()))
    segments = jnp.asarray(np.sort(rng.integers(0, 3, (2, length))), jnp.int32)
    starts = np.asarray([[np.searchsorted(row, segment) for segment in row] for row in np.asarray(segments)])
    places = Places(jnp.asarray(np.arange(length)[None] - starts, jnp.int32), segments)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, in_order: bool) -> jax.Array:
        return jnp.sum(jnp.sin(attention(q, k, v, places, places, window, in_order)))

    for blocks, whole in zip(
        jax.grad(loss, (0, 1, 2))(q, k, v, True), jax.grad(loss, (0, 1, 2))(q, k, v, False), strict=True
    ):
        np.testing.assert_allclose(blocks, whole, rtol=0, atol=1e-6 * float(jnp.abs(whole).max()))


def test_no_score_is_made_for_keys_after_a_block() -> None:
    length = BLOCKS * SHORTEST_BLOCK
    q = jax.ShapeDtypeStruct((1, length, 1, 1, 4), jnp.float32)
    k = jax.ShapeDtypeStruct((1, length, 1, 4), jnp.float32)
    at = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def flops(in_order: bool) -> float:
        lowered = jax.jit(lambda q, k, p: attention(q, k, k, Places(p, p), Places(p, p), None, in_order)).lower(
            q, k, at
        )
        return lowered.cost_analysis()["flops"]

    assert flops(True) < 0.6 * flops(False)


def test_kernel_gradient_is_that_of_tensordot() -> None:
    x, kernel = jax.random.normal(jax.random.key(0), (2, 5, 3, 4)), jax.random.normal(jax.random.key(1), (3, 4, 2, 7))
    ours = jax.grad(lambda x, k: jnp.sum(jnp.sin(product(x, k, 2))), (0, 1))(x, kernel)
    jaxs = jax.grad(lambda x, k: jnp.sum(jnp.sin(jnp.tensordot(x, k, 2))), (0, 1))(x, kernel)
    for one, other in zip(ours, jaxs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
