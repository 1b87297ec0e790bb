"""The gather against plain indexing, masks against slices, optimizer state against parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chop.plans import CENTRED, ROTARY, plans
from hypothesis import given, settings
from hypothesis import strategies as st
from models.random_params import random_params

from chopjax.axes import flatten
from chopjax.chop.apply import chop_config, chop_params, gather, masks
from chopjax.chop.plan import Plan
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import forward, logits
from chopjax.models.parameters import config_mismatch, declare

BOTH = pytest.mark.parametrize("config", [ROTARY, CENTRED], ids=["rotary", "centred"])


def test_nested_gather_by_hand() -> None:
    leaf = declare(ROTARY)["layers/attention/q/bias"]  # layers | kv_heads q_per_kv head_dim
    array = np.arange(5 * 3 * 3 * 6).reshape(5, 3, 3, 6)
    kept = {
        "layers": np.array([1, 4]),
        "kv_heads": np.array([[2, 0], [1, 2]]),
        "q_per_kv": np.array([[[1], [0]], [[2], [2]]]),
    }
    chopped = gather(array, leaf, Plan(dict(ROTARY.sizes), kept))
    assert chopped.shape == (2, 2, 1, 6)
    for (i, j), (layer, head, query) in {
        (0, 0): (1, 2, 1), (0, 1): (1, 0, 0), (1, 0): (4, 1, 2), (1, 1): (4, 2, 2),
    }.items():  # fmt: skip
        np.testing.assert_array_equal(chopped[i, j, 0], array[layer, head, query])


@BOTH
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_numpy_and_jax_agree_bit_for_bit(config: ModelConfig, data: st.DataObject) -> None:
    plan, params = data.draw(plans(config)), random_params(config)
    on_jax = jax.jit(lambda params: chop_params(plan, declare(config), params))(params)
    on_numpy = chop_params(plan, declare(config), jax.tree.map(np.asarray, params))
    assert config_mismatch(chop_config(config, plan), {k: v.shape for k, v in flatten(on_jax).items()}) is None
    jax.tree.map(np.testing.assert_array_equal, on_jax, on_numpy)


@BOTH
def test_chop_of_nothing_changes_no_bit(config: ModelConfig) -> None:
    params, everything = random_params(config), Plan(dict(config.sizes), {})
    jax.tree.map(np.testing.assert_array_equal, chop_params(everything, declare(config), params), params)
    assert chop_config(config, everything) == config


@BOTH
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_mask_equals_slice(config: ModelConfig, data: st.DataObject) -> None:
    plan, params = data.draw(plans(config)), random_params(config)
    words = plan.kept.get("vocab", np.arange(config.vocab))
    dropped = np.setdiff1d(np.arange(config.vocab), words)
    tokens = np.random.default_rng(1).integers(0, len(words), (2, 7)).astype(np.int32)
    student = chop_config(config, plan)
    sliced_params = chop_params(plan, declare(config), jax.tree.map(np.asarray, params))
    on_device = {axis: jnp.asarray(mask) for axis, mask in masks(plan).items()}

    # One compilation for both sides: each example has other shapes.
    @jax.jit
    def both(params: dict, sliced_params: dict, on_device: dict) -> tuple[jax.Array, jax.Array]:
        sliced = logits(student, sliced_params, forward(student, sliced_params, jnp.asarray(tokens)).hidden)
        hidden = forward(config, params, jnp.asarray(words[tokens], jnp.int32), masks=on_device).hidden
        return sliced, logits(config, params, hidden, on_device)

    sliced, masked = both(params, sliced_params, on_device)
    assert not np.isfinite(np.asarray(masked)[..., dropped]).any()
    np.testing.assert_allclose(np.asarray(masked)[..., words], sliced, atol=2e-5 * float(jnp.abs(sliced).max()))


def test_kinds_of_layer_follow_the_layers() -> None:
    plan = Plan(dict(ROTARY.sizes), {"layers": np.array([1, 2, 4])})
    student = chop_config(ROTARY, plan)
    assert [student.kinds[kind].window for kind in student.kind_of_layer] == [3, 3, 3]
    assert len(student.kinds) == 1
    assert dataclasses.replace(student, layers=5, kinds=ROTARY.kinds, kind_of_layer=ROTARY.kind_of_layer) == ROTARY
