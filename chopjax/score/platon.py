"""PLATON (Zhang et al. 2022, arXiv 2206.12562): importance of weights as smoothed sensitivity times uncertainty.

Just CHOP (arXiv 2305.14864, equations 1 to 4) takes it over and gives no constants. PLATON's own code
averages the sensitivity over a few steps before it enters the moving means; here, as in the equations, every step
enters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


class Platon(NamedTuple):
    """Moving means of every weight, float32 trees like the parameters; both start from 0.

    Attributes:
        sensitivity: Ī, of the first-order change of the loss.
        uncertainty: Ū, of how far the change of a single step lies from Ī.
    """

    sensitivity: PyTree[Float[Array, "..."]]
    uncertainty: PyTree[Float[Array, "..."]]


def init(params: PyTree[Float[Array, "..."]]) -> Platon:
    """The state before the first step."""

    def zeros(x: Array) -> Array:
        return jnp.zeros_like(x, dtype=jnp.float32)

    return Platon(jax.tree.map(zeros, params), jax.tree.map(zeros, params))


def update(
    state: Platon,
    params: PyTree[Float[Array, "..."]],
    gradients: PyTree[Float[Array, "..."]],
    beta1: float,
    beta2: float,
) -> Platon:
    """One step: I = |θ · ∂L/∂θ|, Ī ← β1 Ī + (1 − β1) I, U = |I − Ī|, Ū ← β2 Ū + (1 − β2) U.

    Args:
        state: before the step.
        params: θ, at which the gradient was taken.
        gradients: ∂L/∂θ, a tree like `params`.
        beta1: decay of Ī.
        beta2: decay of Ū.
    """
    change = jax.tree.map(lambda p, g: jnp.abs(p.astype(jnp.float32) * g.astype(jnp.float32)), params, gradients)
    sensitivity = jax.tree.map(lambda mean, i: beta1 * mean + (1 - beta1) * i, state.sensitivity, change)
    uncertainty = jax.tree.map(
        lambda mean, i, smooth: beta2 * mean + (1 - beta2) * jnp.abs(i - smooth), state.uncertainty, change, sensitivity
    )
    return Platon(sensitivity, uncertainty)


def score(state: Platon) -> PyTree[Float[Array, "..."]]:
    """S = Ī · Ū of every weight; higher is kept."""
    return jax.tree.map(jnp.multiply, state.sensitivity, state.uncertainty)
