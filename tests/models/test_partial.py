"""Parts of the stack against the scan over all of it."""

import jax
import jax.numpy as jnp
import numpy as np
from models.random_params import WINDOWED, random_params

from chopjax.chop.apply import chop_config, chop_params
from chopjax.chop.plan import Plan
from chopjax.models.decoder import forward
from chopjax.models.parameters import declare
from chopjax.models.partial import enter, leave, run_layers

PARAMS = random_params(WINDOWED)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, WINDOWED.vocab, (2, 13)).astype(np.int32)
SEGMENTS = np.repeat([[1, 2], [1, 1]], [6, 7], axis=1).astype(np.int32)
POSITIONS = np.stack([[*range(6), *range(7)], range(13)]).astype(np.int32)


@jax.jit
def hidden(order: jax.Array, first: jax.Array, middle: jax.Array, last: jax.Array) -> jax.Array:
    stack, x = enter(WINDOWED, PARAMS, TOKENS, POSITIONS, SEGMENTS)
    return leave(stack, run_layers(stack, run_layers(stack, x, order, first, middle), order, middle, last))


def test_all_layers_in_two_parts_equal_forward() -> None:
    expected = forward(WINDOWED, PARAMS, TOKENS, POSITIONS, SEGMENTS).hidden
    for middle in range(4):
        found = hidden(jnp.arange(3), jnp.int32(0), jnp.int32(middle), jnp.int32(3))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert hidden._cache_size() == 1


def test_listed_layers_equal_the_chopped_model() -> None:
    plan = Plan(dict(WINDOWED.sizes), {"layers": np.array([1, 2], np.int32)})
    params = chop_params(plan, declare(WINDOWED), PARAMS)
    expected = forward(chop_config(WINDOWED, plan), params, TOKENS, POSITIONS, SEGMENTS).hidden
    found = hidden(jnp.array([0, 1, 2]), jnp.int32(1), jnp.int32(2), jnp.int32(3))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_no_layers_leave_the_stream_as_it_is() -> None:
    stack, x = enter(WINDOWED, PARAMS, TOKENS)
    np.testing.assert_array_equal(run_layers(stack, x, jnp.arange(3), 2, 2), x)
    np.testing.assert_array_equal(x, forward(WINDOWED, PARAMS, TOKENS).embedded)
