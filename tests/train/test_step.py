"""The train step: the same on every mesh, with any number of micro-batches, and what it reports."""

import functools
import re
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chopjax.axes import flatten
from chopjax.distill.config import LossConfig
from chopjax.distill.objective import Models
from chopjax.errors import UserError
from chopjax.models import decoder
from chopjax.models.config import ModelConfig
from chopjax.models.constrain import unpinned
from chopjax.models.parameters import declare
from chopjax.sharding.mesh import Constrain, make_mesh, param_shardings, replicated
from chopjax.sharding.rules import Kernel, MeshConfig
from chopjax.train.optimizers import OptimizerConfig, build
from chopjax.train.schedules import ScheduleConfig, make_schedule
from chopjax.train.state import TrainState, init_state, state_shardings, trained
from chopjax.train.step import StepConfig, compile_step, make_step

# Heads as in SmolLM2: 9 query heads on 3 key/value heads, which no mesh axis of 2 divides.
STUDENT = ModelConfig(
    layers=2, embed=72, kv_heads=3, q_per_kv=3, head_dim=6, mlp=50, vocab=16 * 7, positions=13, tied=True
)
TEACHER = ModelConfig(
    layers=3, embed=88, kv_heads=3, q_per_kv=3, head_dim=6, mlp=62, vocab=16 * 9, positions=13, qkv_bias=True
)
LOSS = LossConfig(next_token=0.5, kl=1.0, temperature=2.0, z_loss=1e-4, chunk=60)
SCHEDULE = ScheduleConfig("cosine", learning_rate=3e-3, steps=20, warmup_steps=3)
FLOAT32 = StepConfig(compute_dtype="float32")
FALLBACKS = ("kv_heads",)
MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)]


def batch(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Rows of two packed sequences and some padding, of differing lengths."""
    rng = np.random.default_rng(seed)
    length = STUDENT.positions
    cut = rng.integers(2, length - 4, (rows, 1))
    end = rng.integers(length - 3, length + 1, (rows, 1))
    places = np.arange(length)[None]
    segments = np.where(places < cut, 1, np.where(places < end, 2, 0))
    return {
        "tokens": rng.integers(0, STUDENT.vocab - 5, (rows, length)).astype(np.int32),
        "segment_ids": segments.astype(np.int32),
        "positions": np.where(places < cut, places, places - cut).astype(np.int32),
    }


@functools.cache
def params(config: ModelConfig) -> dict:
    """Large enough that the two models differ in what they predict."""
    rng = np.random.default_rng(config.layers)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0.0 if len(x.shape) > 2 else 0.3, 0.15, x.shape), x.dtype),
        decoder.abstract_params(config),
    )


def models(pin=unpinned) -> Models:
    return Models(STUDENT, TEACHER, vocab_tokens=STUDENT.vocab - 5, constrain=pin)


def optimizer(**options) -> optax.GradientTransformation:
    return build(OptimizerConfig(**({"schedule": SCHEDULE} | options)), declare(STUDENT))


def run(
    shape: tuple[int, int, int],
    steps: int,
    devices: Sequence[jax.Device] | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    kernel: Kernel = "auto",
    rows: int = 16,
) -> tuple[np.ndarray, TrainState]:
    config = MeshConfig(*shape, fallbacks=FALLBACKS)
    mesh = make_mesh(config, (devices or jax.devices())[: int(np.prod(shape))])
    rule, how = optimizer(), StepConfig(compute_dtype=dtype)
    step = make_step(models(Constrain(mesh, FALLBACKS, kernel)), LOSS, how, rule, make_schedule(SCHEDULE))
    shardings = state_shardings(trained(STUDENT, rule), mesh, FALLBACKS)
    teacher_shardings = param_shardings(TEACHER, mesh, FALLBACKS)
    # The step donates its state, and so must not be given the cached arrays themselves.
    state = jax.device_put(jax.tree.map(jnp.copy, init_state(params(STUDENT), rule)), shardings)
    teacher = jax.device_put(jax.tree.map(lambda x: x.astype(dtype), params(TEACHER)), teacher_shardings)
    compiled = compile_step(step, shardings, teacher_shardings, mesh)
    losses = []
    for i in range(steps):
        state, metrics = compiled(state, teacher, batch(rows, seed=i % 2))
        losses.append([metrics[name] for name in ("loss", "next_token", "kl", "grad_norm", "param_norm")])
    return np.asarray(jax.device_get(losses)), state


@functools.cache
def on_one_device() -> np.ndarray:
    return run((1, 1, 1), 20)[0]


@pytest.mark.parametrize("shape", MESHES[1:])
def test_same_losses_on_every_mesh(shape: tuple[int, int, int]) -> None:
    losses, state = run(shape, 20)
    assert on_one_device()[-1, 0] < 0.97 * on_one_device()[0, 0]  # something is learnt, so something could differ
    np.testing.assert_allclose(losses[:, :3], on_one_device()[:, :3], rtol=1e-5)
    up = flatten(state.params)["layers/mlp/up/kernel"]
    assert up.addressable_shards[0].data.shape == (2, 72 // shape[1], 50 // shape[2])
    mean = optax.tree.get(state.opt_state, "mu")["layers"]["mlp"]["up"]["kernel"]
    assert mean.sharding == up.sharding and int(state.step) == 20


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "kernel", "error"), [("float32", "reference", 1e-4), ("bfloat16", "cudnn", 2e-2)])
def test_same_losses_on_a_gpu(dtype: Literal["float32", "bfloat16"], kernel: Kernel, error: float) -> None:
    found = run((1, 1, 1), 20, jax.devices("cuda"), dtype, kernel)[0]
    wanted = run((1, 1, 1), 20, jax.devices("cpu"))[0]
    np.testing.assert_allclose(found[:, :3], wanted[:, :3], rtol=error)


DESCENT = optax.sgd(0.1)
"""Gradient descent: a difference in the gradient is one of the same size in the parameters."""


@functools.cache
def one_step(config: StepConfig, rule: optax.GradientTransformation = DESCENT, rows: int = 12):
    step = make_step(models(), LOSS, config, rule, make_schedule(SCHEDULE))
    # Unoptimised code compiles in half the time.
    compiled = jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})
    return compiled(init_state(params(STUDENT), rule), params(TEACHER), batch(rows, seed=3))


def assert_same_params(got: TrainState, wanted: TrainState) -> None:
    for g, w in zip(jax.tree.leaves(got.params), jax.tree.leaves(wanted.params), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)


def test_accumulation_equals_one_batch() -> None:
    whole, whole_metrics = one_step(FLOAT32)
    parts, metrics = one_step(StepConfig(3, "float32"))
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-6, err_msg=name)
    assert_same_params(parts, whole)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_nothing(remat: str) -> None:
    assert_same_params(one_step(StepConfig(1, "float32", remat))[0], one_step(FLOAT32)[0])


def test_bfloat16_computes_and_keeps_float32_masters() -> None:
    state, metrics = one_step(StepConfig())
    _, exact = one_step(FLOAT32)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert metrics["loss"] != exact["loss"]
    np.testing.assert_allclose(metrics["loss"], exact["loss"], rtol=2e-2)


def test_metrics_are_means_over_predicting_tokens() -> None:
    _, metrics = one_step(FLOAT32)
    rows = batch(12, seed=3)
    inside = (rows["segment_ids"][:, 1:] == rows["segment_ids"][:, :-1]) & (rows["segment_ids"][:, 1:] > 0)
    assert float(metrics["tokens"]) == inside.sum()
    forward = jax.jit(functools.partial(decoder.forward, STUDENT))
    hidden = forward(params(STUDENT), rows["tokens"], rows["positions"], rows["segment_ids"]).hidden
    logits = decoder.logits(STUDENT, params(STUDENT), hidden)[:, :-1, : STUDENT.vocab - 5]
    nll = optax.losses.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(rows["tokens"][:, 1:]))
    np.testing.assert_allclose(metrics["next_token"], np.asarray(nll)[inside].mean(), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["loss"], 0.5 * metrics["next_token"] + metrics["kl"] + 1e-4 * metrics["z_loss"], rtol=1e-6
    )
    np.testing.assert_allclose(metrics["learning_rate"], 1e-3, rtol=1e-6)
    assert metrics["param_norm"] > 0 and metrics["grad_norm"] > 0


def test_lion_learns_without_a_teacher() -> None:
    rule = optimizer(name="lion", schedule=ScheduleConfig("constant", 1e-2))
    loss = LossConfig(1.0, kl=0.0, chunk=40)
    step = jax.jit(make_step(Models(STUDENT), loss, FLOAT32, rule, lambda _: jnp.float32(1e-2)))
    state, rows = init_state(params(STUDENT), rule), batch(4, seed=1)
    losses = []
    for _ in range(8):
        state, metrics = step(state, None, rows)
        losses.append(float(metrics["loss"]))
        assert "kl" not in metrics
    assert losses[-1] < losses[0] - 0.3


INPUTS = ("tokens", "segment_ids", "positions")


def test_whole_step_holds_no_more_than_a_chunk_of_logits() -> None:
    vocab, length, chunk = 16411, 32, 64
    student = ModelConfig(1, 8, 1, 3, 4, 10, vocab, positions=length)
    rule = build(OptimizerConfig(), declare(student))
    step = make_step(Models(student, student), LossConfig(chunk=chunk), FLOAT32, rule, make_schedule(SCHEDULE))
    state = jax.eval_shape(lambda x: init_state(x, rule), decoder.abstract_params(student))

    def temporary(rows: int) -> int:
        inputs = dict.fromkeys(INPUTS, jax.ShapeDtypeStruct((rows, length), jnp.int32))
        compiled = jax.jit(step).lower(state, decoder.abstract_params(student), inputs).compile()
        shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", compiled.as_text())
        sizes = {int(np.prod([int(size) for size in shape.split(",")])) for shape in shapes}
        assert chunk * vocab in sizes and max(sizes) < 2 * chunk * vocab
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(16) - temporary(8) < 8 * length * vocab * 4 / 10


def collectives(text: str, inside_loops: bool) -> list[str]:
    """Types of what devices exchange in compiled code, in bodies of loops or outside of them."""
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    found = []
    for name, block in re.findall(r"^(?:ENTRY )?%([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, re.S | re.M):
        if (name in bodies) == inside_loops:
            found += re.findall(
                r"= (\S.*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\(", block
            )
    return found


def test_vocabulary_and_batch_are_not_moved_between_devices_in_each_chunk() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    vocab, rows, length = 328, 16, 20
    student = ModelConfig(2, 24, 3, 3, 4, 32, vocab, positions=length)
    rule = build(OptimizerConfig(), declare(student))
    loss = LossConfig(1.0, kl=0.0, chunk=32)
    step = make_step(Models(student, constrain=Constrain(mesh)), loss, FLOAT32, rule, make_schedule(SCHEDULE))
    state = jax.eval_shape(lambda x: init_state(x, rule), decoder.abstract_params(student))
    inputs = dict.fromkeys(INPUTS, jax.ShapeDtypeStruct((rows, length), jnp.int32))
    compiled = (
        compile_step(step, state_shardings(trained(student, rule), mesh), None, mesh)
        .lower(state, None, inputs)
        .compile()
    )
    outside, inside = (collectives(compiled.as_text(), inside_loops) for inside_loops in (False, True))
    # Each device keeps its share of the vocabulary, 328 / 4 columns, whose gradient is summed over copies once.
    assert any("24,82]" in kind for kind in outside) and not any("24,82]" in kind for kind in inside)
    assert any("f32[16,24]" in kind for kind in inside)  # a chunk's hidden states are gathered
    assert any("24,32]" in kind for kind in inside)  # the layers' weights are gathered layer by layer
    assert not any("328" in kind for kind in inside)  # neither logits nor the whole unembedding
    assert not any(f"16,{length}" in kind for kind in outside + inside)  # no device receives the whole batch


def test_refusals() -> None:
    with pytest.raises(UserError, match="loss.kl has a weight"):
        make_step(Models(STUDENT), LossConfig(), FLOAT32, optimizer(), make_schedule(SCHEDULE))
    with pytest.raises(UserError, match="12 rows .* train.accumulate=5"):
        one_step(StepConfig(5, "float32"))
    with pytest.raises(UserError, match="train.remat is 'some'"):
        StepConfig(remat="some")
    with pytest.raises(UserError, match="float16"):
        StepConfig(compute_dtype="float16")
    mesh = make_mesh(MeshConfig(tensor=2))
    with pytest.raises(UserError, match="kv_heads of size 3"):
        state_shardings(trained(STUDENT, optimizer()), mesh)
    assert replicated(mesh).is_fully_replicated
