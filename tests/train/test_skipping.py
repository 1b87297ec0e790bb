"""Steps with gradients that are not finite change nothing; healthy ones are what they would be without the check."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.chop.dimchop import Watched
from chopjax.distill.config import LossConfig
from chopjax.distill.objective import Models
from chopjax.errors import Diverged
from chopjax.models import decoder
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import count, declare
from chopjax.score.platon import Platon
from chopjax.train import skipping
from chopjax.train.config import OptimizerConfig, ScheduleConfig
from chopjax.train.optimizers import build
from chopjax.train.schedules import make_schedule
from chopjax.train.skipping import Steps
from chopjax.train.state import TrainState, init_state
from chopjax.train.step import StepConfig, make_step

MODEL = ModelConfig(layers=2, embed=20, kv_heads=1, q_per_kv=3, head_dim=6, mlp=14, vocab=41, positions=11)
BAD = 40  # the token that has NaN for its embedding
RATE = ScheduleConfig("constant", 3e-2, steps=9)


def batch(seed: int, bad: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, BAD, (3, MODEL.positions)).astype(np.int32)
    tokens[1, 4] = BAD if bad else tokens[1, 4]
    ones = np.ones_like(tokens)
    return {"tokens": tokens, "segment_ids": ones, "positions": np.cumsum(ones, axis=1, dtype=np.int32) - 1}


@functools.cache
def compiled(checked: bool = True) -> tuple:
    """A step, and the state before it; with `checked` false what would be computed without any check."""
    rule, how = build(OptimizerConfig(schedule=RATE), declare(MODEL)), StepConfig(compute_dtype="float32")
    step = make_step(Models(MODEL), LossConfig.plain(17), how, rule, make_schedule(RATE))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0.2, 0.3, x.shape).astype(np.float32), decoder.abstract_params(MODEL))
    params["embed"]["table"][BAD] = np.nan
    start = functools.partial(init_state, jax.tree.map(jnp.asarray, params), rule)
    state = start()
    with pytest.MonkeyPatch.context() as patch:
        if not checked:
            patch.setattr(skipping, "where", lambda healthy, new, old: new)
        # Optimised, two programs may round the same sums differently: where multiplications join additions is up to
        # the compiler.
        unoptimised = {"xla_backend_optimization_level": 0}
        done = jax.jit(step, donate_argnums=0).lower(jax.eval_shape(start), None, batch(0)).compile(unoptimised)
    return done, lambda: jax.tree.map(jnp.copy, state)


def taken(step, state: TrainState, *batches: dict[str, np.ndarray]) -> tuple[TrainState, list[dict[str, float]]]:
    lines = []
    for one in batches:
        state, metrics = step(state, None, one)
        lines.append({name: float(value) for name, value in metrics.items()})
    return jax.device_get(state), lines


def assert_same_bits(left, right) -> None:
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_healthy_steps_are_the_same_bit_for_bit() -> None:
    batches = [batch(seed) for seed in range(4)]
    ends = []
    for checked in (True, False):
        step, start = compiled(checked)
        ends.append(taken(step, start(), *batches))
    assert_same_bits(ends[0][0], ends[1][0])
    assert [line["loss"] for line in ends[0][1]] == [line["loss"] for line in ends[1][1]]
    assert [line["skipped"] for line in ends[0][1]] == [0, 0, 0, 0]


def test_a_bad_step_changes_nothing_but_the_counts_of_steps() -> None:
    step, start = compiled()
    before, _ = taken(step, start(), batch(0))
    after, lines = taken(step, jax.tree.map(jnp.asarray, before), batch(1, bad=True), batch(2, bad=True))
    assert [line["skipped"] for line in lines] == [1, 1] and np.isnan(lines[0]["loss"])
    assert_same_bits(after.params, before.params)
    assert int(after.step) == 3
    counts = [
        jax.tree_util.keystr(path)
        for (path, new), old in zip(
            jax.tree_util.tree_leaves_with_path(after.opt_state), jax.tree.leaves(before.opt_state), strict=True
        )
        if np.asarray(new).tobytes() != np.asarray(old).tobytes()
    ]
    assert len(counts) == 1 and counts[0].endswith(".count")  # the schedule's; Adam's belongs to its moments
    _, lines = taken(step, jax.tree.map(jnp.asarray, after), batch(3))
    assert lines[0]["skipped"] == 0 and np.isfinite(lines[0]["loss"])


def test_training_goes_on_as_if_the_bad_rows_had_not_been_there() -> None:
    step, start = compiled()
    without, _ = taken(step, start(), batch(0), batch(1), batch(2))
    with_bad, lines = taken(step, start(), batch(0), batch(7, bad=True), batch(1), batch(8, bad=True), batch(2))
    assert_same_bits(with_bad.params, without.params)
    assert [line["skipped"] for line in lines] == [0, 1, 0, 1, 0]


def test_the_check_copies_neither_parameters_nor_moments() -> None:
    checked, unchecked = (compiled(kind)[0].memory_analysis() for kind in (True, False))
    assert checked.temp_size_in_bytes - unchecked.temp_size_in_bytes < 4 * count(MODEL) / 4
    assert checked.alias_size_in_bytes == unchecked.alias_size_in_bytes > 3 * 4 * count(MODEL)


def test_what_counts_as_finite() -> None:
    assert skipping.finite(jnp.float32(3e38), jnp.float32(0))
    assert not skipping.finite(jnp.float32(1), jnp.float32(jnp.nan))
    assert not skipping.finite(jnp.float32(jnp.inf))


def test_dimchop_counts_on_and_keeps_its_means_and_masks() -> None:
    def watched(step: int, value: float) -> Watched:
        part = {"x": jnp.full(3, value)}
        return Watched(jnp.int32(step), Platon(*[part] * len(Platon._fields)), {"mlp": jnp.full(2, value)})

    old, new = watched(4, 1.0), watched(5, jnp.nan)
    kept = skipping.where(jnp.asarray(False), (new,), (old,))[0]
    assert int(kept.step) == 5
    assert_same_bits(kept[1:], old[1:])
    assert_same_bits(skipping.where(jnp.asarray(True), new, old), new)


def flags(steps: Steps, first: int, *skipped: int) -> None:
    for step, flag in enumerate(skipped, first):
        steps.begin(step, jnp.float32(flag))


def test_skipped_steps_are_counted_two_steps_behind() -> None:
    steps = Steps(done=10, skipped=4)
    flags(steps, 11, 0, 1, 1)
    assert (steps.ended, steps.skipped, steps.in_a_row) == (11, 4, 0)
    steps.settle()
    assert (steps.ended, steps.skipped, steps.in_a_row) == (13, 6, 2)
    flags(steps, 14, 0)
    steps.settle()
    assert (steps.skipped, steps.in_a_row) == (6, 0)


def test_too_many_in_a_row_end_the_run() -> None:
    steps = Steps(limit=3)
    flags(steps, 1, 1, 1, 0, 1, 1)
    with pytest.raises(Diverged, match=r"step 6: .* in 3 steps in a row, from step 4 on; .* train.skip_limit"):
        flags(steps, 6, 1, 0, 0)
    endless = Steps(limit=0)
    flags(endless, 1, *[1] * 30)
