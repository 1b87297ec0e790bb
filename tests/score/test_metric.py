"""Layers by any metric: named functions, truly chopped candidates, and their shardings."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from models.random_params import WINDOWED, random_params

from chopjax.axes import flatten
from chopjax.errors import UserError
from chopjax.evaluate.perplexity import evaluate_rows
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Params
from chopjax.models.parameters import config_mismatch
from chopjax.score.candidates import mean_losses
from chopjax.score.metric import greedy_by_metric, leave_out_by_metric, load_metric, of_layers
from chopjax.score.removal import leave_out
from chopjax.sharding.mesh import make_mesh, param_shardings
from chopjax.sharding.rules import MeshConfig

PARAMS = random_params(WINDOWED, scale=0.3)


def scale_of_layers(config: ModelConfig, params: Params) -> float:
    """Sum of the first element of each layer's first norm, which the tests set, so that each layer has a number."""
    assert config_mismatch(config, {path: leaf.shape for path, leaf in flatten(params).items()}) is None
    return params["layers"]["attention_norm"]["scale"][:, 0].sum()  # an array of one number will do


def numbered(config: ModelConfig, numbers: list[float]) -> Params:
    params = random_params(config)
    scale = params["layers"]["attention_norm"]["scale"]
    params["layers"]["attention_norm"]["scale"] = scale.at[:, 0].set(np.asarray(numbers, np.float32))
    return params


SIX = ModelConfig(layers=6, embed=8, kv_heads=4, q_per_kv=2, head_dim=2, mlp=4, vocab=12, positions=16)
NUMBERS = [3.0, -1.0, 4.0, np.nan, 5.0, 9.0]


def test_every_start_is_chopped_and_measured() -> None:
    params = numbered(SIX, [3, -1, 4, 1, 5, 9])
    np.testing.assert_allclose(leave_out_by_metric(SIX, params, scale_of_layers), [18, 22, 17, 20, 16, 12])
    np.testing.assert_allclose(leave_out_by_metric(SIX, params, scale_of_layers, 3), [15, 17, 11, 6])
    np.testing.assert_allclose(leave_out_by_metric(SIX, params, scale_of_layers, 2, order=(0, 2, 5)), [9, 3])


def test_greedy_takes_the_layer_without_which_the_metric_is_lowest() -> None:
    params = numbered(SIX, [3, -1, 4, 1, 5, 9])
    assert greedy_by_metric(SIX, params, scale_of_layers, 3) == ((5, 4, 2), (12, 7, 3))
    assert greedy_by_metric(SIX, params, scale_of_layers, 2, keep={5, 2}).layers == (4, 0)


def test_a_metric_that_is_not_finite_is_the_worst() -> None:
    params = numbered(SIX, NUMBERS)
    found = leave_out_by_metric(SIX, params, scale_of_layers)
    np.testing.assert_allclose(found, [np.inf] * 3 + [20] + [np.inf] * 2)
    assert greedy_by_metric(SIX, params, scale_of_layers, 1).layers == (3,)


def test_loss_as_a_metric_equals_leave_out() -> None:
    """Two ways to the same figures; with windows, candidates differ in their kinds of layer too."""
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(0, WINDOWED.vocab, (2, 13)).astype(np.int32),
        "segment_ids": np.ones((2, 13), np.int32),
    }
    batch["segment_ids"][0, 9:] = 0

    def loss(config: ModelConfig, params: Params) -> float:
        return evaluate_rows(config, params, [batch]).nll

    expected = mean_losses(leave_out(WINDOWED, PARAMS, [batch], 2), "next_token", 2)
    np.testing.assert_allclose(leave_out_by_metric(WINDOWED, PARAMS, loss, 2), expected, rtol=1e-6)


def test_candidates_lie_where_the_model_lies() -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    params = jax.device_put(random_params(SIX), param_shardings(SIX, mesh))
    config, chopped = of_layers(SIX, params, (0, 4, 5))
    assert config.layers == 3
    expected = param_shardings(config, mesh)
    assert all(jax.tree.leaves(jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, chopped, expected)))
    expected_up = np.asarray(params["layers"]["mlp"]["up"]["kernel"])[[0, 4, 5]]
    np.testing.assert_array_equal(chopped["layers"]["mlp"]["up"]["kernel"], expected_up)


def test_a_metric_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my_metrics"
    folder.mkdir()
    (folder / "depth.py").write_text("def layers(config, params):\n    return config.layers\n\nnumber = 3\n")
    (folder / "needy.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    metric = load_metric("my_metrics.depth:layers")
    assert metric(SIX, {}) == 6
    for name, said in {
        "depth": r"plan.metric is 'depth'; write package.module:function",
        ":layers": "write package.module:function",
        ".depth:layers": "write package.module:function",
        "my_metrics.width:layers": "my_metrics.width cannot be imported",
        "my_metrics.needy:layers": "a_module_that_nobody_has",
        "my_metrics.depth:heads": "depth.py has no 'heads'",
        "my_metrics.depth:number": "that is a int; name a function",
    }.items():
        with pytest.raises(UserError, match=said) as caught:
            load_metric(name)
        assert "\n" not in str(caught.value)
    for name in [name for name in sys.modules if name.startswith("my_metrics")]:
        del sys.modules[name]


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match="it gave None; it must give one number"):
        leave_out_by_metric(SIX, random_params(SIX), lambda config, params: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(UserError, match="6 of 6 layers are to go at a time; give 1 to 5"):
        leave_out_by_metric(SIX, random_params(SIX), scale_of_layers, 6)
