"""Moments are cut like the parameters that they belong to, counts are left alone, and training goes on."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from chop.plans import CENTRED, ROTARY, plans
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.axes import flatten
from chopjax.chop.apply import chop_config, chop_params
from chopjax.chop.optimizer_state import chop_optimizer_state
from chopjax.chop.plan import Plan
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import abstract_params
from chopjax.models.parameters import declare
from chopjax.train import optimizers
from chopjax.train.config import OptimizerConfig, ScheduleConfig

SCHEDULE = ScheduleConfig(learning_rate=0.1, steps=9, warmup_steps=2)
# Each with the number of trees in its state that are shaped like the parameters.
OPTIMIZERS = {
    "adamw": (OptimizerConfig(name="adamw", schedule=SCHEDULE, clip=0.5), 2),
    "lion": (OptimizerConfig(name="lion", schedule=SCHEDULE, clip=0.5), 1),
    "unclipped": (OptimizerConfig(name="adamw", schedule=SCHEDULE, clip=0.0), 2),
}
EACH = pytest.mark.parametrize("name", OPTIMIZERS)
BOTH = pytest.mark.parametrize("config", [ROTARY, CENTRED], ids=["rotary", "centred"])


def filled(shapes: Any, seed: int = 0) -> Any:
    """Numpy arrays of these shapes and dtypes: positive random numbers, and 4 for every count."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.uniform(0.1, 1, s.shape).astype(s.dtype) if s.shape else s.dtype.type(4), shapes)


def made(config: ModelConfig, name: str) -> tuple[optax.GradientTransformation, Any]:
    """The optimizer for a model, and a state of it that no steps needed to be taken for."""
    optimizer = optimizers.build(OPTIMIZERS[name][0], declare(config))
    return optimizer, filled(jax.eval_shape(optimizer.init, abstract_params(config)))


def trees(state: Any, config: ModelConfig) -> tuple[list[dict[str, Any]], list[Any]]:
    """Every part of the state that is a tree like the parameters, and every other array."""
    structure = jax.tree.structure(abstract_params(config))

    def is_like(part: Any) -> bool:
        return jax.tree.structure(part) == structure

    parts = jax.tree.leaves(state, is_leaf=is_like)
    return [flatten(part) for part in parts if is_like(part)], [part for part in parts if not is_like(part)]


@EACH
@BOTH
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_moments_are_gathered(config: ModelConfig, name: str, data: st.DataObject) -> None:
    leaves, plan = declare(config), data.draw(plans(config))
    optimizer, state = made(config, name)
    chopped, student = chop_optimizer_state(plan, leaves, optimizer, state), chop_config(config, plan)

    (moments, counts), (chopped_moments, chopped_counts) = trees(state, config), trees(chopped, student)
    assert len(moments) == len(chopped_moments) == OPTIMIZERS[name][1]
    for whole, part in zip(moments, chopped_moments, strict=True):
        wanted = flatten(chop_params(plan, leaves, whole))
        assert wanted.keys() == part.keys() == declare(student).keys()
        for path in part:
            np.testing.assert_array_equal(part[path], wanted[path])
    assert counts == chopped_counts == [4] * len(counts) and counts

    fresh = jax.eval_shape(optimizers.build(OPTIMIZERS[name][0], declare(student)).init, abstract_params(student))
    assert jax.tree.map(np.shape, chopped) == jax.tree.map(np.shape, fresh)


@EACH
@BOTH
def test_chop_of_nothing_changes_nothing(config: ModelConfig, name: str) -> None:
    optimizer, state = made(config, name)
    same = chop_optimizer_state(Plan(dict(config.sizes), {}), declare(config), optimizer, state)
    assert jax.tree.structure(same) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, same, state)


@EACH
def test_the_next_step_is_that_of_the_whole_cut(name: str) -> None:
    """Updates are made entry by entry, so what is kept moves as it would have; but clipping goes by all that is left.

    So gradients of what is dropped are 0 here.
    """
    config, leaves = CENTRED, declare(CENTRED)
    mlp = np.array([[1, 4], [8, 0]])
    plan = Plan(dict(config.sizes), {"layers": np.array([0, 2]), "mlp": mlp, "embed": np.array([0, 3, 7, 12])})
    optimizer, state = made(config, name)
    params, marks = filled(abstract_params(config), 1), filled(abstract_params(config), 2)
    kept = {path: np.unique(part) for path, part in flatten(chop_params(plan, leaves, marks)).items()}
    gradients = jax.tree_util.tree_map_with_path(lambda path, mark: mark * np.isin(mark, kept[place(path)]), marks)

    whole, _ = jax.jit(optimizer.update)(gradients, state, params)
    small = optimizers.build(OPTIMIZERS[name][0], declare(chop_config(config, plan)))
    cut = [chop_params(plan, leaves, tree) for tree in (gradients, params)]
    part, following = jax.jit(small.update)(cut[0], chop_optimizer_state(plan, leaves, optimizer, state), cut[1])
    assert all(int(value) == 5 for value in trees(following, chop_config(config, plan))[1])
    wanted = flatten(chop_params(plan, leaves, whole))
    for path, update in flatten(part).items():
        np.testing.assert_allclose(update, wanted[path], rtol=2e-6)


def place(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
