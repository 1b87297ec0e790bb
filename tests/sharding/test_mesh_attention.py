"""Attention on a mesh: the kernel on each device's own rows and heads, and where it is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models.attention import Places, attention
from chopjax.sharding.mesh import Constrain, make_mesh
from chopjax.sharding.rules import MeshConfig

MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def grouped(kv_heads: int, q_per_kv: int) -> tuple[list[jax.Array], Places]:
    """q, k, v and a cotangent of 4 rows of 9 tokens, each two segments."""
    rng = np.random.default_rng(0)
    shapes = [(4, 9, kv_heads, *more, 4) for more in ((q_per_kv,), (), (), (q_per_kv,))]
    positions, segments = np.asarray([0, 1, 2, 3, 4, 0, 1, 2, 3]), np.asarray([1] * 5 + [2] * 4)
    places = Places(*(jnp.asarray(np.tile(x, (4, 1)), jnp.int32) for x in (positions, segments)))
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes], places


# 3 key/value heads do not divide: their query heads are split instead, and each device holds all keys.
@pytest.mark.parametrize(("kv_heads", "q_per_kv"), [(2, 3), (3, 2)])
def test_attention_kernel_on_each_devices_own_rows_and_heads(kv_heads: int, q_per_kv: int) -> None:
    pin = Constrain(make_mesh(MESH), ("kv_heads",), kernel="splash")
    (q, k, v, cotangent), places = grouped(kv_heads, q_per_kv)

    def both(attend):
        out, back = jax.vjp(lambda *qkv: attend(*qkv, places, places, 3, True), q, k, v)
        return out, *back(cotangent)

    found = jax.jit(lambda: both(pin.attention))()
    heads = "tensor" if kv_heads == 2 else None
    assert found[0].sharding.spec[:3] == (("data", "fsdp"), None, heads)
    for one, other in zip(found, both(attention), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_attention_is_the_reference_unless_on_tpus_and_in_order() -> None:
    (q, k, v, _), places = grouped(2, 3)
    mesh = make_mesh(MESH)

    def program(attend, in_order: bool) -> str:
        return str(jax.make_jaxpr(lambda *qkv: attend(*qkv, places, places, None, in_order))(q, k, v))

    assert program(Constrain(mesh).attention, True) == program(attention, True)
    assert "pallas_call" in program(Constrain(mesh, kernel="splash").attention, True)
    assert program(Constrain(mesh, kernel="splash").attention, False) == program(attention, False)
    assert program(Constrain(mesh.abstract_mesh).attention, True) == program(attention, True)
