"""Losses on logits and activations, learned projections and a teacher that learns: the same on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.test_step import FALLBACKS, FLOAT32, SCHEDULE, STUDENT, TEACHER, batch, params

from chopjax.axes import flatten
from chopjax.distill.config import LossConfig
from chopjax.distill.hidden_config import HiddenConfig
from chopjax.distill.matching import match
from chopjax.distill.objective import Models
from chopjax.distill.projections import init_projections
from chopjax.sharding.mesh import Constrain, make_mesh
from chopjax.sharding.rules import MeshConfig
from chopjax.train.optimizers import OptimizerConfig, build
from chopjax.train.schedules import make_schedule
from chopjax.train.state import TrainState, init_state, leaves_of, state_shardings, trained
from chopjax.train.step import compile_step, make_step

HIDDEN = HiddenConfig(
    block_output=1.0,
    relation=0.7,
    embedding_table=0.01,
    project="per_layer",
    layer_map="last",
    distance="normalised_mse",
    dynamic=True,
)
LOSS = LossConfig(next_token=0.3, kl=1.0, jsd=0.5, temperature=2.0, chunk=60)
STEPS = 4


@functools.cache
def run(shape: tuple[int, int, int]) -> tuple[dict[str, np.ndarray], TrainState]:
    """Metrics of some steps, by name, and the last state."""
    mesh = make_mesh(MeshConfig(*shape, fallbacks=FALLBACKS), jax.devices()[: int(np.prod(shape))])
    matching = match(HIDDEN, STUDENT, TEACHER)
    student = trained(STUDENT, build(OptimizerConfig(schedule=SCHEDULE), leaves_of(STUDENT, matching)), matching)
    teacher = trained(TEACHER, build(OptimizerConfig(schedule=SCHEDULE), leaves_of(TEACHER)))
    models = Models(STUDENT, TEACHER, STUDENT.vocab - 5, Constrain(mesh, FALLBACKS), matching)
    step = make_step(
        models, LOSS, FLOAT32, student.optimizer, make_schedule(SCHEDULE), teacher_optimizer=teacher.optimizer
    )
    shardings = state_shardings(student, mesh, FALLBACKS, teacher)
    start = params(STUDENT) | init_projections(matching, jax.random.key(3))
    state = init_state(start, student.optimizer, (params(TEACHER), teacher.optimizer))
    state = jax.device_put(jax.tree.map(jnp.copy, state), shardings)
    # Unoptimised code compiles in half the time.
    lowered = compile_step(step, shardings, None, mesh).lower(state, None, batch(16, seed=0))
    compiled, lines = lowered.compile({"xla_backend_optimization_level": 0}), []
    for i in range(STEPS):
        state, metrics = compiled(state, None, batch(16, seed=i % 2))
        lines.append(jax.device_get(metrics))
    return {name: np.asarray([line[name] for line in lines]) for name in lines[0]}, state


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)])
def test_same_on_every_mesh(shape: tuple[int, int, int]) -> None:
    wanted, _ = run((1, 1, 1))
    found, state = run(shape)
    assert found.keys() == wanted.keys() >= {f"hidden/{name}" for name in HIDDEN.terms} | {"alpha", "jsd"}
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)
    # Both sides learn, and what they learn is split.
    for name in ("teacher_next_token", "hidden/block_output", "jsd"):
        assert wanted[name][-2] < 0.995 * wanted[name][0], name
    projection = flatten(state.params)["projections/block_output/kernel"]
    assert projection.shape == (2, 72, 88) and projection.addressable_shards[0].data.size < projection.size
    assert state.teacher is not None
    up = flatten(state.teacher.params)["layers/mlp/up/kernel"]
    assert up.addressable_shards[0].data.shape == (3, 88 // shape[1], 62 // shape[2])


def test_the_total_is_what_the_parts_say() -> None:
    found, _ = run((1, 1, 1))
    on_logits = 0.3 * found["next_token"] + found["kl"] + 0.5 * found["jsd"]
    on_activations = sum(getattr(HIDDEN, name) * found[f"hidden/{name}"] for name in HIDDEN.terms)
    np.testing.assert_allclose(found["alpha"], on_logits / on_activations, rtol=1e-5)
    np.testing.assert_allclose(found["loss"], 2 * on_logits, rtol=1e-5)
