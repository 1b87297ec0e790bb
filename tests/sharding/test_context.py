"""Rows split along their length: losses, gradients, scores and a teacher's tokens are those of one device."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.random_params import random_params

from chopjax.distill.config import LossConfig
from chopjax.distill.hidden_config import HiddenConfig
from chopjax.distill.matching import match
from chopjax.distill.objective import Models, batch_sums
from chopjax.distill.on_policy_config import OnPolicyConfig
from chopjax.distill.projections import init_projections
from chopjax.distill.schedules import scalars
from chopjax.distill.sparse import draw_tokens
from chopjax.errors import UserError
from chopjax.evaluate import perplexity, requests
from chopjax.models.config import LayerKind, ModelConfig
from chopjax.models.constrain import Constrain as Pin
from chopjax.models.constrain import unpinned
from chopjax.score import removal
from chopjax.score.activations import score_sums
from chopjax.sharding.mesh import Constrain, make_mesh, param_shardings, place_batch
from chopjax.sharding.rules import MeshConfig
from chopjax.train.on_policy import sampled_batch

STUDENT = ModelConfig(
    layers=2,
    embed=24,
    kv_heads=2,
    q_per_kv=3,
    head_dim=6,
    mlp=10,
    vocab=22,
    positions=60,
    tied=True,
    kinds=(LayerKind(), LayerKind(window=11)),
    kind_of_layer=(0, 1),
)
TEACHER = dataclasses.replace(STUDENT, layers=3, embed=16, tied=False, kind_of_layer=(0, 1, 1))
LENGTH, WORDS = 36, 20
HIDDEN = HiddenConfig(block_output=1.0, relation=0.7, project="per_layer", layer_map="last")
SAMPLING = OnPolicyConfig(prompt=7, temperature=0.8)
LOSS = LossConfig(next_token=0.5, kl=1.0, temperature=2.0, z_loss=1e-4, chunk=20)
MESHES = [{"data": 2, "fsdp": 1, "context": 4}, {"fsdp": 2, "context": 2, "tensor": 2}]


@functools.cache
def batch() -> dict[str, np.ndarray]:
    """Rows of two sequences and padding; sequences cross the borders of parts, and end right before and behind one."""
    rng, place = np.random.default_rng(0), np.arange(LENGTH)[None]
    cut, end = np.asarray([[5], [18], [19], [31]]), np.asarray([[36], [30], [27], [35]])
    segments = np.where(place < cut, 1, np.where(place < end, 2, 0))
    positions = np.where(place < cut, place, place - cut)
    tokens = rng.integers(0, WORDS, (4, LENGTH))
    found = {"tokens": tokens, "segment_ids": segments, "positions": positions}
    return {name: array.astype(np.int32) for name, array in found.items()}


def on(mesh_of: dict[str, int] | None, function: Callable[..., Any], *configs: ModelConfig) -> Any:
    """`function(pin, batch, *parameters)` on a mesh, or on one device."""
    params = [random_params(config, seed, 0.2) for seed, config in enumerate(configs)]
    # Unoptimised code compiles in half the time.
    options = {"compiler_options": {"xla_backend_optimization_level": 0}}
    if mesh_of is None:
        return jax.device_get(jax.jit(functools.partial(function, unpinned), **options)(batch(), *params))
    mesh = make_mesh(MeshConfig(**mesh_of))
    params = [jax.device_put(p, param_shardings(config, mesh)) for p, config in zip(params, configs, strict=True)]
    run = jax.jit(functools.partial(function, Constrain(mesh)), **options)
    return jax.device_get(run(place_batch(mesh, batch()), *params))


def learnt(pin: Pin, rows: Any, student: Any, teacher: Any) -> Any:
    """The loss, its parts, and its gradients."""
    matching = match(HIDDEN, STUDENT, TEACHER)
    models = Models(STUDENT, TEACHER, WORDS, pin, matching)
    params = student | init_projections(matching, jax.random.key(1))

    def total(params: Any) -> Any:
        now = scalars(LOSS, jnp.zeros((), jnp.int32), 1)
        return batch_sums(models, LOSS, now, params, teacher, rows, remat="full")

    return jax.value_and_grad(total, has_aux=True)(params)


@functools.cache
def learnt_alone() -> Any:
    return on(None, learnt, STUDENT, TEACHER)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_losses_and_gradients(mesh: dict[str, int]) -> None:
    (total, parts), gradients = on(mesh, learnt, STUDENT, TEACHER)
    (wanted, wanted_parts), wanted_gradients = learnt_alone()
    assert total == pytest.approx(wanted, rel=1e-5)
    assert parts.keys() == wanted_parts.keys() >= {"next_token", "kl", "hidden/relation", "hidden/block_output"}
    for name, value in wanted_parts.items():
        assert parts[name] == pytest.approx(value, rel=1e-5), name
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted_gradients), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def measured(pin: Pin, rows: Any, params: Any) -> Any:
    """Scores, losses without layers, a held-out loss, single tokens' losses in a length that does not divide, draws
    from a teacher, and what the student itself writes."""
    options = {"chunk": 20, "vocab_tokens": WORDS, "constrain": pin}
    short = {name: rows[name][:, :33] for name in rows} | {"labels": rows["tokens"][:, 1:34]}
    hidden = jax.random.normal(jax.random.key(2), (4, LENGTH, 8))
    unembed = jax.random.normal(jax.random.key(3), (8, 22))
    keys = jnp.arange(8, dtype=jnp.uint32).reshape(4, 2)
    return {
        "scores": score_sums(STUDENT, params, rows, constrain=pin),
        "rows": perplexity.batch_sums(STUDENT, params, rows, **options),
        "tokens": requests._by_token(STUDENT, params, short, **options),
        "without": removal.batch_sums(
            STUDENT, params, rows, jnp.arange(2), jnp.asarray(2), jnp.asarray(1), jnp.asarray(0), metric="kl", **options
        ),
        "sampled": sampled_batch(STUDENT, params, rows, jax.random.key(4), SAMPLING, pin, "float32", WORDS, (3,)),
        "draws": dataclasses.asdict(draw_tokens(hidden, unembed, keys, 3, **options)),
    }


def test_scores_evaluations_and_a_teachers_tokens() -> None:
    found, wanted = on(MESHES[0], measured, STUDENT), on(None, measured, STUDENT)
    for one, other in ((found["draws"], wanted["draws"]), (found["sampled"], wanted["sampled"])):
        np.testing.assert_array_equal(one.get("ids", one.get("tokens")), other.get("ids", other.get("tokens")))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


def test_each_device_holds_its_part_of_rows_and_of_parameters() -> None:
    mesh = make_mesh(MeshConfig(**MESHES[1]))
    rows = place_batch(mesh, batch() | {"half": np.arange(4), "keys": np.zeros((4, 2), np.uint32)})
    assert rows["tokens"].sharding.shard_shape((4, LENGTH)) == (2, 18)
    assert rows["half"].sharding.shard_shape((4,)) == (2,) and rows["keys"].sharding.shard_shape((4, 2)) == (2, 2)
    for name, array in batch().items():
        np.testing.assert_array_equal(rows[name], array)
    table = param_shardings(STUDENT, mesh)["embed"]["table"]
    assert table.shard_shape((22, 24)) == (11, 24 // 4)  # along `embed` over fsdp and context


def test_a_length_that_cannot_be_split() -> None:
    pin = Constrain(make_mesh(MeshConfig(**MESHES[0])))
    with pytest.raises(UserError, match="axis length of size 33 cannot be split in the 4 equal parts of mesh.context"):
        jax.eval_shape(lambda x: pin(x, ("batch", "length")), jnp.ones((4, 33)))
    assert pin.holding("length").holding("embed").spec(jnp.ones((4, 33)), ("batch", "length"))[1:] == (None,)
