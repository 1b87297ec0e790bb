"""Attention on a mesh: the kernel on each device's own rows and heads, and where it is chosen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from chopjax.errors import UserError
from chopjax.models.attention import Places, attention
from chopjax.sharding import attention as on_mesh
from chopjax.sharding.attention import chosen
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


# 12 tokens in parts of 3 and of 6; segments of 5 and 4 and padding cross them.
@pytest.mark.parametrize(
    ("kernel", "mesh"),
    [("splash", MeshConfig(fsdp=2, context=2, tensor=2)), ("reference", MeshConfig(data=2, fsdp=1, context=4))],
)
def test_each_device_has_its_own_queries(kernel: str, mesh: MeshConfig) -> None:
    pin = Constrain(make_mesh(mesh), kernel=kernel)
    arrays, places = grouped(2, 3)
    more = ((0, 0), (0, 3))
    places = Places(*(jnp.pad(array, more) for array in places))
    places = places._replace(positions=places.positions.at[:, 9:].set(jnp.arange(3)))
    q, k, v, cotangent = (jnp.pad(array, (*more, *[(0, 0)] * (array.ndim - 2)), mode="wrap") for array in arrays)

    def both(attend):
        out, back = jax.vjp(lambda *qkv: attend(*qkv, places, places, 4, True), q, k, v)
        return out, *back(cotangent)

    found = jax.jit(lambda: both(pin.attention))()
    assert found[0].sharding.spec[1] == "context"
    for one, other in zip(found, both(attention), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A device as a mesh sees it."""

    id: int = 0
    platform: str = "gpu"
    compute_capability: str = "9.0"
    device_kind: str = "unknown"
    process_index: int = 0


def test_which_kernel() -> None:
    half, whole, wide = (jnp.ones((1, 2, 1, 1, size), dtype) for size, dtype in KINDS)
    cpu, gpu = make_mesh(MESH), make_mesh(MeshConfig(fsdp=1), [Gpu()])
    assert [chosen("auto", gpu, q) for q in (half, whole, wide)] == ["cudnn", "reference", "reference"]
    assert chosen("auto", make_mesh(MeshConfig(fsdp=1), [Gpu(compute_capability="7.0")]), half) == "reference"
    assert chosen("auto", cpu, half) == chosen("auto", cpu.abstract_mesh, half) == "reference"
    assert chosen("reference", gpu, half) == "reference" and chosen("cudnn", gpu, wide) == "cudnn"
    with pytest.raises(UserError, match="mesh.attention is 'cudnn', which takes bfloat16"):
        chosen("cudnn", gpu, whole)
    with pytest.raises(UserError, match="mesh.attention is 'cudnn', which is for NVIDIA GPUs, and .* are CPUs"):
        chosen("cudnn", cpu, half)


KINDS = ((64, jnp.bfloat16), (64, jnp.float32), (160, jnp.bfloat16))


def test_cudnn_on_each_devices_own_rows_and_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(on_mesh, "platform_of", lambda mesh: "gpu")
    (q, k, v, _), places = grouped(2, 3)
    q, k, v = (array[:, :8].astype(jnp.bfloat16) for array in (q, k, v))
    pin = Constrain(make_mesh(MeshConfig(fsdp=2, context=2, tensor=2)), kernel="cudnn")
    run = jax.jit(lambda *qkv: pin.attention(*qkv, places.between(0, 8), places.between(0, 8), None, True))
    text = run.trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text
    assert "tensor<2x4x3x8xbf16>" in text and "tensor<2x8x1x8xbf16>" in text  # half of the queries, all of the keys


def test_attention_is_the_reference_unless_on_tpus_and_in_order() -> None:
    (q, k, v, _), places = grouped(2, 3)
    mesh = make_mesh(MESH)

    def program(attend, in_order: bool) -> str:
        return str(jax.make_jaxpr(lambda *qkv: attend(*qkv, places, places, None, in_order))(q, k, v))

    assert program(Constrain(mesh).attention, True) == program(attention, True)
    assert "pallas_call" in program(Constrain(mesh, kernel="splash").attention, True)
    assert program(Constrain(mesh, kernel="splash").attention, False) == program(attention, False)
    assert program(Constrain(mesh.abstract_mesh).attention, True) == program(attention, True)
