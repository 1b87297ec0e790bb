"""DimCHOP: the schedule, which dimensions are masked, and that what is masked goes on learning and may return."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chop.plans import CENTRED, ROTARY
from models.random_params import random_params

from chopjax.axes import AROUND, flatten
from chopjax.chop.apply import chop_config, chop_params
from chopjax.chop.build import build_plan
from chopjax.chop.config import PlanConfig
from chopjax.chop.dimchop import DimChop, kept_count, top_mask
from chopjax.chop.dimchop_config import DimChopConfig
from chopjax.distill.config import LossConfig
from chopjax.distill.objective import Models
from chopjax.errors import UserError
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import forward
from chopjax.models.layers import StraightThrough
from chopjax.models.parameters import declare
from chopjax.score.platon import Platon
from chopjax.sharding.mesh import Constrain, make_mesh, place_batch
from chopjax.sharding.rules import MeshConfig
from chopjax.train.config import OptimizerConfig, ScheduleConfig
from chopjax.train.optimizers import build
from chopjax.train.state import TrainState, init_state, state_shardings, trained
from chopjax.train.step import StepConfig, compile_step, make_step

MODEL = ModelConfig(
    layers=2, embed=24, kv_heads=4, q_per_kv=3, head_dim=4, mlp=20, vocab=40, positions=16, qkv_bias=True
)
TARGETS = {"kv_heads": 3, "q_per_kv": 2, "mlp": 13, "embed": 17}
# Unoptimised code compiles in half the time.
FAST = {"xla_backend_optimization_level": 0}


def test_the_kept_count_falls_exponentially_to_the_target() -> None:
    kept = [int(kept_count(400, 100, rise)) for rise in (-1, 0, 0.25, 0.5, 0.75, 1, 7)]
    assert kept == [400, 400, 283, 200, 141, 100, 100]  # 400 · 4^-rise
    every = [int(kept_count(14336, 9216, step / 97)) for step in range(98)]
    assert every[0] == 14336 and every[-1] == 9216
    drops = -np.diff(every)
    assert (drops > 0).all() and drops[0] > drops[-1]


def test_the_printed_form_of_the_schedule_is_the_same() -> None:
    end, rise = 1 - 100 / 400, np.linspace(0, 1, 9)
    k = -np.log(1 - end)
    fraction = end * (1 - np.exp(-k * rise)) / (1 - np.exp(-k))
    assert [int(kept_count(400, 100, r)) for r in rise] == [round(400 * (1 - f)) for f in fraction]


def test_the_highest_are_kept_and_ties_go_to_the_lowest_index() -> None:
    score = jnp.asarray([[1.0, 5.0, 1.0, 1.0, 7.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(top_mask(score, 3), [[1, 1, 0, 0, 1], [1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(top_mask(score, jnp.int32(5)), np.ones((2, 5)))


def random_means(seed: int) -> Platon:
    rng = np.random.default_rng(seed)
    draw = functools.partial(jax.tree.map, lambda p: jnp.asarray(rng.uniform(0.1, 1, p.shape), jnp.float32))
    return Platon(draw(random_params(MODEL)), draw(random_params(MODEL)))


def by_matrix(share: float = 0.3, **options) -> DimChop:
    return DimChop(DimChopConfig("matrix", share, **({"start": 2, "steps": 4} | options)), MODEL, until=8)


def pooled(**options) -> DimChop:
    return DimChop(DimChopConfig("pooled", **({"start": 2, "steps": 4} | options)), MODEL, 8, TARGETS)


def test_every_matrix_of_every_layer_loses_the_same_share_of_its_outputs() -> None:
    means, dimchop = random_means(0), by_matrix(0.3)
    assert all(mask.all() for mask in dimchop.masks(means, jnp.int32(2)).values())
    masks = dimchop.masks(means, jnp.int32(6))
    matrices = {path for path in flatten(random_params(MODEL)) if path.startswith("layers") and "kernel" in path}
    assert masks.keys() == matrices
    for path, mask in masks.items():
        dropped = (np.asarray(mask).reshape(2, -1) == 0).sum(axis=1)
        assert dropped.tolist() == [round(0.3 * mask[0].size)] * 2, path
    # A dimension's score is the sum down its column; the lowest go.
    scores = np.multiply(*(np.asarray(mean["layers"]["attention"]["q"]["kernel"]) for mean in means)).sum(axis=1)
    lowest = np.sort(scores[1].ravel())[round(0.3 * 48)]
    np.testing.assert_array_equal(masks["layers/attention/q/kernel"][1], scores[1] >= lowest)


def test_masked_parameters_have_columns_of_zeros_and_no_bias_there() -> None:
    params, masks = random_params(MODEL), by_matrix().masks(random_means(0), jnp.int32(6))
    state = by_matrix().watching(optax.sgd(0.1)).init(params)
    found, for_forward = by_matrix().apply(params, (state[0]._replace(masks=masks), state[1]))
    assert for_forward is None
    found, params = flatten(found), flatten(params)
    for path, mask in masks.items():
        kept = np.asarray(mask).reshape(2, -1) > 0
        inputs = tuple(range(1, 1 + len(declare(MODEL)[path].inputs)))
        column = np.abs(found[path]).max(axis=inputs).reshape(2, -1)
        assert ((column > 0) == kept).all(), path
    wanted = np.where(masks["layers/attention/k/kernel"] > 0, params["layers/attention/k/bias"], 0)
    np.testing.assert_array_equal(found["layers/attention/k/bias"], wanted)
    untouched = [path for path in params if path not in masks and "bias" not in path]
    assert all(found[path] is params[path] for path in untouched) and "embed/table" in untouched


def drop_some(config: ModelConfig, axis: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    mask = np.ones([config.sizes[name] for name in (*AROUND[axis], axis)], np.float32)
    mask[..., rng.choice(mask.shape[-1], mask.shape[-1] // 2, replace=False)] = 0
    return mask


# relu2 would leave some neurons without any gradient, masked or not.
SMOOTH = dataclasses.replace(CENTRED, activation="gelu")


@pytest.mark.parametrize("config", [ROTARY, SMOOTH], ids=["rms", "centred"])
def test_straight_through_masks_give_the_same_result_and_pass_gradient(config: ModelConfig) -> None:
    params = random_params(config, scale=0.3)
    tokens = np.random.default_rng(0).integers(0, config.vocab, (2, 7)).astype(np.int32)
    masks = {axis: jnp.asarray(drop_some(config, axis)) for axis in TARGETS}

    def loss(params: dict, wrap) -> tuple[jax.Array, jax.Array]:
        hidden = forward(config, params, tokens, masks={axis: wrap(mask) for axis, mask in masks.items()}).hidden
        return jnp.sum(hidden * jnp.sin(jnp.arange(hidden.size, dtype=jnp.float32).reshape(hidden.shape))), hidden

    step = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1, compiler_options=FAST)
    plain, hidden = step(params, lambda mask: mask)
    through, same = step(params, StraightThrough)
    np.testing.assert_array_equal(hidden, same)
    plain, through = flatten(plain), flatten(through)
    # What makes a dropped unit: its column of the up projection, its queries, keys and values, its own channel.
    for axis, path, inputs in (
        ("mlp", "layers/mlp/up/kernel", (1,)),
        ("q_per_kv", "layers/attention/q/kernel", (1, 4)),
        ("kv_heads", "layers/attention/v/kernel", (1, 3)),
        ("embed", "embed/table", (0,)),
        ("embed", "layers/mlp/down/kernel", (0, 1)),
    ):
        dropped = np.asarray(masks[axis]) == 0
        before, after = (np.abs(flat[path]).sum(axis=inputs)[dropped] for flat in (plain, through))
        assert (after > 0).all(), path
        assert axis == "embed" or not before.any(), path
    assert not np.abs(plain["layers/mlp/down/kernel"]).sum(axis=(0, 1))[np.asarray(masks["embed"]) == 0].any()


def batch(seed: int) -> dict[str, np.ndarray]:
    rows = np.random.default_rng(seed).integers(0, 40, (8, 11)).astype(np.int32)
    places = np.broadcast_to(np.arange(11, dtype=np.int32), rows.shape)
    return {"tokens": rows, "segment_ids": np.ones_like(rows), "positions": places}


def train(dimchop: DimChop, shape: tuple[int, int, int], steps: int, begin=lambda state: state) -> list[TrainState]:
    """The states before and after every step, on the host."""
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
    rule = dimchop.watching(build(OptimizerConfig(schedule=ScheduleConfig("constant", 3e-3)), declare(MODEL)))
    loss, how = LossConfig(1.0, kl=0.0, chunk=32), StepConfig(2, "float32")
    step = make_step(Models(MODEL, constrain=Constrain(mesh)), loss, how, rule, lambda _: jnp.float32(0), dimchop)
    shardings = state_shardings(trained(MODEL, rule), mesh)
    state = jax.device_put(begin(init_state(random_params(MODEL, scale=0.3), rule)), shardings)
    compiled = compile_step(step, shardings, None, mesh).lower(state, None, place_batch(mesh, batch(0)))
    compiled = compiled.compile(compiler_options=FAST)
    states = [jax.tree.map(np.array, state)]  # copies: a view of a buffer would keep it from being donated
    for i in range(steps):
        given = state
        state, metrics = compiled(given, None, place_batch(mesh, batch(i)))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.opt_state))  # donated
        assert float(metrics["kept_share"]) == pytest.approx(np.mean(concatenated(states[-1])), rel=1e-6)
        states.append(jax.tree.map(np.array, state))
    means = state.opt_state[0].platon
    for tree in means:
        assert all(
            m.sharding.is_equivalent_to(p.sharding, p.ndim)
            for m, p in zip(jax.tree.leaves(tree), jax.tree.leaves(state.params), strict=True)
        )
    return states


def concatenated(state: TrainState) -> np.ndarray:
    return np.concatenate([mask.ravel() for mask in state.opt_state[0].masks.values()])


@pytest.mark.parametrize("mode", ["matrix", "pooled"])
def test_training_masks_on_schedule(mode: str) -> None:
    dimchop = by_matrix(0.4, every=3) if mode == "matrix" else pooled(every=3)
    states = train(dimchop, (1, 2, 4), 8)
    kept = [concatenated(state).sum() for state in states]
    # New masks after steps 3, 6 (also the end of the schedule) and 8, the last.
    assert kept[0] == kept[1] == kept[2] == concatenated(states[0]).size
    assert kept[2] > kept[3] == kept[5] > kept[6] == kept[7] == kept[8]
    last = states[-1].opt_state[0]
    again = dimchop.masks(last.platon, jnp.int32(8))
    assert all((last.masks[name] == again[name]).all() for name in again)
    if mode == "pooled":
        check_the_plan_is_what_the_masks_kept(dimchop, states[-1])
        check_one_device_does_the_same(dimchop, states[-1])


def check_the_plan_is_what_the_masks_kept(dimchop: DimChop, state: TrainState) -> None:
    scores = {axis: np.asarray(score) for axis, score in dimchop.scores(state.opt_state[0].platon).items()}
    plan = build_plan(PlanConfig(**TARGETS), MODEL.sizes, scores)
    config = chop_config(MODEL, plan)
    assert {axis: config.sizes[axis] for axis in TARGETS} == TARGETS
    chopped = chop_params(plan, declare(MODEL), state.params)
    for path, leaf in declare(config).items():
        assert flatten(chopped)[path].shape == leaf.shape(config.sizes)
    params, masks = dimchop.apply(state.params, state.opt_state)
    rows = batch(9)["tokens"]
    wanted = np.asarray(forward(MODEL, params, rows, masks=masks).hidden)[..., plan.kept["embed"]]
    found = np.asarray(forward(config, chopped, rows).hidden)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def check_one_device_does_the_same(dimchop: DimChop, across: TrainState) -> None:
    alone = train(dimchop, (1, 1, 1), 8)[-1]
    np.testing.assert_array_equal(concatenated(across), concatenated(alone))
    for one, other in zip(jax.tree.leaves(across.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_what_is_masked_learns_and_comes_back() -> None:
    dimchop = by_matrix(0.4, start=0, steps=1)
    path, unlucky = "layers/mlp/up/kernel", (0, 3)

    def begin(state: TrainState) -> TrainState:
        """A neuron with large weights, which chance has masked."""
        params = jax.tree.map(jnp.copy, state.params)
        up = params["layers"]["mlp"]["up"]
        up["kernel"] = up["kernel"].at[0, :, 3].mul(5)
        watched, rest = state.opt_state
        masks = watched.masks | {path: watched.masks[path].at[unlucky].set(0)}
        return TrainState(state.step, params, (watched._replace(masks=masks), rest))

    states = train(dimchop, (1, 1, 1), 3, begin)
    masked = [state.opt_state[0].masks[path][unlucky] for state in states]
    assert masked[0] == 0 and masked[-1] == 1
    first, second = (flatten(state.params)[path][0, :, 3] for state in states[:2])
    assert (np.abs(second - first) > 1e-4).all()  # every weight of the masked column was updated
    assert (states[-1].opt_state[0].masks[path] == 0).sum(axis=1).tolist() == [8, 8]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "column"}, "dimchop.mode is 'column'"),
        ({"share": 1.0}, "dimchop.share is 1.0; give a number from 0 to below 1"),
        ({"beta2": float("nan")}, "dimchop.beta2 is nan"),
        ({"steps": 0}, "dimchop.steps is 0; give 1 or more"),
        ({"start": -1}, "dimchop.start is -1"),
    ],
)
def test_refusals(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        DimChopConfig(**options)
