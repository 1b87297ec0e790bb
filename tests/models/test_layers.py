"""The product of a `Linear` and its own gradient rule, beside JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models.layers import product

# Input and output axes: fewer inputs than outputs, as many, more, and more over several axes, as after attention.
KERNELS = [((5,), (7,)), ((6,), (3, 2)), ((11,), (5,)), ((3, 2, 5), (7,))]


@pytest.mark.parametrize(("inputs", "outputs"), KERNELS, ids=str)
def test_gradients_are_those_of_a_tensordot(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    x, kernel, d_y = (
        jax.random.normal(jax.random.key(seed), shape)
        for seed, shape in enumerate(((3, 13, *inputs), (*inputs, *outputs), (3, 13, *outputs)))
    )
    y, back = jax.vjp(lambda x, kernel: product(x, kernel, len(inputs)), x, kernel)
    wanted, wanted_back = jax.vjp(lambda x, kernel: jnp.tensordot(x, kernel, axes=len(inputs)), x, kernel)
    np.testing.assert_allclose(y, wanted, rtol=1e-6)
    for found, gradient in zip(back(d_y), wanted_back(d_y), strict=True):
        np.testing.assert_allclose(found, gradient, rtol=2e-5, atol=1e-5)


def test_only_programs_for_cpus_turn_a_gradient() -> None:
    """On TPUs, layouts are the compiler's own, and a barrier would keep it from fusing."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 13, 11), (11, 5))]
    traced = jax.jit(jax.grad(lambda x, kernel: jnp.sum(product(x, kernel, 1)), argnums=1)).trace(*shapes)
    barriers = {
        platform: "optimization_barrier" in traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert barriers == {"cpu": True, "tpu": False, "cuda": False}
