"""Magnitude and Taylor scores against sums over explicit leaves, and on meshes of every shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.random_params import random_params

from chopjax.axes import flatten
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import forward, logits
from chopjax.score.pooling import AXES
from chopjax.score.weights import magnitude, taylor_sums
from chopjax.sharding.mesh import Constrain, make_mesh, param_shardings, place_batch
from chopjax.sharding.rules import MeshConfig

CONFIG = ModelConfig(
    layers=2, embed=24, kv_heads=4, q_per_kv=3, head_dim=6, mlp=20, vocab=40, positions=16, tied=True, qkv_bias=True
)
VOCAB = 37


@functools.cache
def params() -> dict:
    return random_params(CONFIG, seed=3, scale=0.3)


@functools.cache
def batch() -> dict[str, np.ndarray]:
    """Two documents and padding in each of eight rows."""
    rng = np.random.default_rng(5)
    places = np.arange(11)
    segments = np.stack([np.where(places < 4 + row % 3, 1, np.where(places < 9, 2, 0)) for row in range(8)])
    return {
        "tokens": rng.integers(0, VOCAB, (8, 11)).astype(np.int32),
        "segment_ids": segments.astype(np.int32),
        "positions": np.where(segments == 2, places - (segments == 1).sum(1, keepdims=True), places).astype(np.int32),
    }


def by_leaf(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The pools, leaf by leaf and axis by axis as one would write them down."""
    q, k, v, o = (values[f"layers/attention/{name}/kernel"] for name in "qkvo")
    gate, up, down = (values[f"layers/mlp/{name}/kernel"] for name in ("gate", "up", "down"))
    heads = q.sum((1, 4)) + o.sum((3, 4))
    return {
        "layers": sum(x.reshape(2, -1).sum(1) for x in (q, k, v, o, gate, up, down)),
        "embed": q.sum((0, 2, 3, 4)) + k.sum((0, 2, 3)) + v.sum((0, 2, 3)) + o.sum((0, 1, 2, 3))
        + gate.sum((0, 2)) + up.sum((0, 2)) + down.sum((0, 1)) + values["embed/table"].sum(0),
        "kv_heads": heads.sum(2) + k.sum((1, 3)) + v.sum((1, 3)),
        "q_per_kv": heads,
        "mlp": gate.sum(1) + up.sum(1) + down.sum(2),
    }  # fmt: skip


def assert_close(found: dict, wanted: dict, rtol: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=rtol, err_msg=name)


def test_magnitude_is_the_sum_of_sizes() -> None:
    flat = {path: np.abs(np.asarray(w, np.float64)) for path, w in flatten(params()).items()}
    assert_close(jax.jit(magnitude, static_argnums=0)(CONFIG, params()), by_leaf(flat))


@functools.cache
def wanted() -> dict[str, np.ndarray]:
    """|w · ∂L/∂w| with the loss written out over whole logits."""
    rows = batch()

    def loss(params: dict) -> jax.Array:
        hidden = forward(CONFIG, params, rows["tokens"], rows["positions"], rows["segment_ids"]).hidden
        found = jax.nn.log_softmax(logits(CONFIG, params, hidden)[:, :-1, :VOCAB])
        taken = jnp.take_along_axis(found, jnp.asarray(rows["tokens"][:, 1:, None]), axis=-1)[..., 0]
        counts = (rows["segment_ids"][:, 1:] == rows["segment_ids"][:, :-1]) & (rows["segment_ids"][:, 1:] > 0)
        return -jnp.sum(jnp.where(counts, taken, 0)) / np.float32(counts.sum())

    gradients = flatten(jax.jit(jax.grad(loss))(params()))
    return by_leaf(
        {path: np.abs(np.asarray(w, np.float64) * np.asarray(gradients[path])) for path, w in flatten(params()).items()}
    )


@functools.cache
def scored(data: int, fsdp: int, tensor: int, remat: str) -> dict[str, np.ndarray]:
    mesh = make_mesh(MeshConfig(data, fsdp, tensor), jax.devices()[: data * fsdp * tensor])
    pin = Constrain(mesh)
    options = {"remat": remat, "chunk": 16, "vocab_tokens": VOCAB, "constrain": pin}
    # Unoptimised code compiles in half the time.
    step = jax.jit(
        functools.partial(taylor_sums, CONFIG, **options), compiler_options={"xla_backend_optimization_level": 0}
    )
    placed = jax.device_put(params(), param_shardings(CONFIG, mesh))
    return jax.device_get(step(placed, place_batch(mesh, batch()), jnp.int32(1)))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 1), (1, 2, 4)], ids=["1x1", "8x1", "2x4"])
def test_taylor_is_the_first_order_change_on_every_mesh(shape: tuple[int, int, int]) -> None:
    found = scored(*shape, remat="full" if shape == (1, 1, 1) else "none")
    assert {name: value.shape[0] for name, value in found.items()} == {f"taylor/{axis}": 2 for axis in AXES}
    assert all(not value[0].any() for value in found.values())  # the batch belongs to the second half
    assert_close({name.removeprefix("taylor/"): value[1] for name, value in found.items()}, wanted(), rtol=2e-5)


def test_documents_without_targets_have_no_gradient() -> None:
    first = batch()["segment_ids"] == 1
    every = np.ones_like(first)
    step = functools.partial(taylor_sums, CONFIG, params(), half=jnp.int32(0))
    taylor = jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})
    found = taylor(batch() | {"targets": first})
    assert_close(found, taylor(batch() | {"targets": every, "segment_ids": first.astype(np.int32)}))
    assert not np.allclose(found["taylor/mlp"], taylor(batch() | {"targets": every})["taylor/mlp"])
