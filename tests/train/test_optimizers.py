"""Optimizers: weight decay by role, clipping, state shardings."""

import jax
import numpy as np
import optax
import pytest

from chopjax.axes import flatten
from chopjax.errors import UserError
from chopjax.models import decoder
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import declare
from chopjax.sharding.mesh import make_mesh, param_shardings, replicated
from chopjax.sharding.rules import MeshConfig
from chopjax.train.optimizers import OptimizerConfig, build, decay_mask, state_shardings
from chopjax.train.schedules import ScheduleConfig

CONFIG = ModelConfig(
    2, 8, 2, 3, 4, 10, vocab=14, positions=9, norm="layer", qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True
)
RATE = 0.5
CONSTANT = ScheduleConfig("constant", RATE)


def ones(times: float = 1.0) -> dict:
    return jax.tree.map(lambda x: np.full(x.shape, times, x.dtype), decoder.abstract_params(CONFIG))


def run(config: OptimizerConfig, *gradients: float) -> tuple[dict, optax.OptState]:
    """The last update and state, for parameters of 1 and these gradients, each the same everywhere."""
    rule, params = build(config, declare(CONFIG)), ones()
    update = jax.jit(rule.update)
    state = jax.jit(rule.init)(params)
    for gradient in gradients:
        updates, state = update(ones(gradient), state, params)
    return updates, state


def test_decay_goes_by_role() -> None:
    mask = flatten(decay_mask(declare(CONFIG)))
    decaying = {path for path, decays in mask.items() if decays}
    assert decaying == {path for path in mask if path.endswith(("/kernel", "/table"))}
    assert len(decaying) < len(mask)


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_without_gradient_only_decay_moves(name: str) -> None:
    updates, _ = run(OptimizerConfig(name, CONSTANT, weight_decay=0.1), 0.0)
    for path, update in flatten(updates).items():
        wanted = -RATE * 0.1 if path.endswith(("/kernel", "/table")) else 0.0
        np.testing.assert_allclose(update, wanted, rtol=1e-6, err_msg=path)


def test_adamw_against_its_formula() -> None:
    config = OptimizerConfig("adamw", CONSTANT, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.0, clip=0.0)
    updates, _ = run(config, 0.3, -0.2)
    mean = (0.8 * 0.2 * 0.3 + 0.2 * -0.2) / (1 - 0.8**2)
    square = (0.9 * 0.1 * 0.3**2 + 0.1 * 0.2**2) / (1 - 0.9**2)
    np.testing.assert_allclose(updates["embed"]["table"], -RATE * mean / (np.sqrt(square) + 1e-3), rtol=1e-5)


def test_lion_against_its_formula() -> None:
    config = OptimizerConfig("lion", CONSTANT, b1=0.9, b2=0.5, weight_decay=0.0, clip=0.0)
    for gradients, sign in (((1.0,), 1), ((1.0, -0.4), 1), ((1.0, -9.0), -1)):  # the mean kept after 1.0 is 0.5
        updates, _ = run(config, *gradients)
        np.testing.assert_allclose(updates["final_norm"]["bias"], -RATE * sign)


def test_clip() -> None:
    def mean_norm(clip: float) -> float:
        _, state = run(OptimizerConfig("adamw", CONSTANT, b1=0.0, clip=clip), 1.0)
        return float(optax.tree.norm(optax.tree.get(state, "mu")))

    whole = mean_norm(0.0)
    np.testing.assert_allclose(mean_norm(0.25), 0.25, rtol=1e-5)
    np.testing.assert_allclose(mean_norm(2 * whole), whole, rtol=1e-6)


@pytest.mark.parametrize(("name", "copies"), [("adamw", 2), ("lion", 1)])
def test_state_lies_where_its_parameters_lie(name: str, copies: int) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rule = build(OptimizerConfig(name), declare(CONFIG))
    params, shardings = decoder.abstract_params(CONFIG), param_shardings(CONFIG, mesh)
    whole = replicated(mesh)
    found = jax.tree.leaves(state_shardings(rule, params, shardings, whole))
    state = jax.tree.leaves(jax.eval_shape(rule.init, params))
    like_params = [sharding for leaf, sharding in zip(state, found, strict=True) if leaf.ndim]
    assert like_params == jax.tree.leaves(shardings) * copies
    assert all(sharding == whole for leaf, sharding in zip(state, found, strict=True) if not leaf.ndim)


@pytest.mark.parametrize("options", [{"name": "sgd"}, {"b1": 1.0}, {"clip": -1.0}, {"weight_decay": float("nan")}])
def test_config_refuses(options: dict) -> None:
    with pytest.raises(UserError, match="train\\."):
        OptimizerConfig(**options)
