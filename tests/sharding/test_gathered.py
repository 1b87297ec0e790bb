"""Kernels split along `embed` are gathered for a product, and their gradients are held split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models.layers import ALONE, Gathered, product
from chopjax.sharding import mesh, torus
from chopjax.sharding.mesh import Constrain, make_mesh
from chopjax.sharding.rules import MeshConfig

MESHES = {"tensor": MeshConfig(fsdp=4, tensor=2), "copies": MeshConfig(data=2, fsdp=4), "fsdp": MeshConfig(fsdp=8)}


@pytest.fixture(params=["line", "torus"])
def lines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over all of a mesh axis, or as on a torus of two rows whose second runs backwards."""
    if request.param == "torus":
        monkeypatch.setattr(mesh, "line_stages", lambda of, axis: stages(of.shape[axis]))


def stages(size: int) -> list[torus.Groups]:
    found = torus.stages([(0, x) for x in range(size // 2)] + [(1, x) for x in reversed(range(size // 2))])
    assert found is not None and len(found) == 2
    return found


@pytest.mark.usefixtures("lines")
@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("axes", [("embed", "mlp"), ("mlp", "embed")])
def test_product_of_a_split_kernel(axes: tuple[str, str], name: str) -> None:
    pin = Constrain(make_mesh(MESHES[name]))
    sizes = {"embed": 8, "mlp": 6}
    x = jax.random.normal(jax.random.key(0), (8, 3, sizes[axes[0]]))
    kernel = jax.random.normal(jax.random.key(1), tuple(sizes[axis] for axis in axes))

    def gradients(gathered: Gathered) -> tuple[jax.Array, jax.Array]:
        return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(product(x, kernel, 1, gathered))), (0, 1))(x, kernel)

    compiled = jax.jit(lambda: gradients(Gathered(pin, axes))).lower().compile()
    found = compiled()
    for one, other in zip(found, gradients(ALONE), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    split = {"embed": 8 // MESHES[name].fsdp, "mlp": 6 // MESHES[name].tensor}
    assert found[1].sharding.shard_shape(kernel.shape) == tuple(split[axis] for axis in axes)
