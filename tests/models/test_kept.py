"""Kept activations are those that a tap stacks, at the layers asked for, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.random_params import WINDOWED, random_params

from chopjax.models.decoder import forward
from chopjax.models.kept import slot_of_layer

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 37, (2, 7)), jnp.int32)
KEEP = {"attention_norm": (1, 2), "q": (0,), "k": (1,), "v": (0, 2), "heads": (1,), "mlp_norm": (0, 1, 2)}


def test_slots_by_hand() -> None:
    assert {k: v.tolist() for k, v in slot_of_layer({"q": (1, 3), "k": (0,)}, 5).items()} == {
        "q": [0, 0, 1, 1, 2],
        "k": [0, 1, 1, 1, 1],
    }


@pytest.mark.parametrize("layers", [(), (1, 0), (0, 0), (-1,), (0, 5)])
def test_layers_that_are_none_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not ascending layers of 5"):
        slot_of_layer({"q": layers}, 5)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_kept_is_what_a_tap_stacks_and_so_are_the_gradients(remat: str) -> None:
    params = random_params(WINDOWED)

    def total(picked: dict, hidden: jax.Array) -> jax.Array:
        """Something that tells every element apart."""
        return sum(jnp.sum(jnp.sin(3 * x)) for x in picked.values()) + jnp.sum(jnp.cos(hidden))

    def kept(params: dict) -> tuple[jax.Array, dict]:
        out = forward(WINDOWED, params, TOKENS, keep=KEEP, remat=remat)
        return total(out.kept, out.hidden), out.kept

    def tapped(params: dict) -> tuple[jax.Array, dict]:
        out = forward(WINDOWED, params, TOKENS, tap=lambda a: {name: a[name] for name in KEEP})
        picked = {name: out.taps[name][np.asarray(layers)] for name, layers in KEEP.items()}
        return total(picked, out.hidden), picked

    (_, got), gradient = jax.jit(jax.value_and_grad(kept, has_aux=True))(params)
    (_, wanted), wanted_gradient = jax.jit(jax.value_and_grad(tapped, has_aux=True))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradient, wanted_gradient)
