"""PLATON's moving means, three steps by hand."""

import jax.numpy as jnp
import numpy as np

from chopjax.score import platon


def test_three_steps_by_hand() -> None:
    state = platon.init({"w": jnp.zeros((2,), jnp.bfloat16)})
    assert state.sensitivity["w"].dtype == state.uncertainty["w"].dtype == jnp.float32
    # beta1 = 0.5 and beta2 = 0.75; I = |weight · gradient| is 4, 2, 0 for the first weight and 0, 0, 8 for the other.
    steps = [([2.0, 3.0], [-2.0, 0.0]), ([-1.0, 5.0], [2.0, 0.0]), ([0.0, -2.0], [7.0, 4.0])]
    means = [[2.0, 0.0], [2.0, 0.0], [1.0, 4.0]]
    # |I - mean| is 2, 0, 1 and 0, 0, 4, each with weight 1/4, while what was there keeps 3/4.
    spreads = [[0.5, 0.0], [0.375, 0.0], [0.53125, 1.0]]
    for (weight, gradient), mean, spread in zip(steps, means, spreads, strict=True):
        state = platon.update(state, {"w": jnp.asarray(weight)}, {"w": jnp.asarray(gradient)}, 0.5, 0.75)
        np.testing.assert_array_equal(state.sensitivity["w"], mean)
        np.testing.assert_array_equal(state.uncertainty["w"], spread)
        np.testing.assert_array_equal(platon.score(state)["w"], np.multiply(mean, spread))
