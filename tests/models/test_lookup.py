"""Looking up on a mesh is looking up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models.constrain import unpinned
from chopjax.models.lookup import lookup
from chopjax.sharding.mesh import Constrain, make_mesh
from chopjax.sharding.rules import MeshConfig

TABLE = np.random.default_rng(0).normal(size=(24, 40)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(0, 24, (8, 7)).astype(np.int32)
SLOPE = np.random.default_rng(2).normal(size=(8, 7, 40)).astype(np.float32)


def found(constrain, table=TABLE) -> tuple[jax.Array, jax.Array]:
    """What is looked up, and the table's gradient."""
    table, tokens, slope = (jnp.asarray(array) for array in (table, TOKENS, SLOPE))
    value, pull = jax.jit(lambda table: jax.vjp(lambda t: lookup(t, tokens, constrain), table))(table)
    return value, jax.jit(pull)(slope.astype(value.dtype))[0]


@pytest.mark.parametrize("shape", [(1, 8, 1), (8, 1, 1), (1, 1, 8), (2, 2, 2), (1, 4, 2)])
def test_every_mesh_finds_the_same(shape: tuple[int, int, int]) -> None:
    value, gradient = found(Constrain(make_mesh(MeshConfig(*shape))))
    np.testing.assert_array_equal(value, TABLE[TOKENS])
    wanted = np.zeros(TABLE.shape)
    np.add.at(wanted, TOKENS, SLOPE)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-6)


def test_a_table_that_is_held_whole() -> None:
    """Its width does not divide, and its fallback is permitted."""
    constrain = Constrain(make_mesh(MeshConfig(1, 8, 1)), ("embed", "vocab"))
    table = np.pad(TABLE, ((0, 0), (0, 1)))
    np.testing.assert_array_equal(lookup(jnp.asarray(table), jnp.asarray(TOKENS), constrain), table[TOKENS])


def test_the_gradient_of_a_frequent_token_is_summed_in_float32() -> None:
    table, tokens = jnp.zeros((2, 1), jnp.bfloat16), jnp.zeros((1, 1000), jnp.int32)
    gradient = jax.grad(lambda table: lookup(table, tokens, unpinned).astype(jnp.float32).sum())(table)
    np.testing.assert_array_equal(gradient[:, 0], [1000.0, 0.0])  # bfloat16 by itself ends at 256
