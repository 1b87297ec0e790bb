"""Logits of a run, for comparing with those of other implementations."""

import dataclasses
import types
from typing import Any

import jax
import numpy as np
import pytest
from models.random_params import random_params

from chopjax.commands import verify
from chopjax.models import decoder
from chopjax.models.config import ModelConfig
from chopjax.sharding.mesh import make_mesh
from chopjax.sharding.rules import MeshConfig

MODEL = ModelConfig(layers=3, embed=200, kv_heads=2, q_per_kv=3, head_dim=24, mlp=300, vocab=307, positions=64)


@pytest.mark.gpu
def test_in_whole_float32_on_a_gpu() -> None:
    """Whatever precision products otherwise have there: weights rounded to TF32 move these logits by 1e-3.

    Larger ones would not do: at a scale of 0.4 their last bits move the logits by 1e-5 and more, on any device.
    """
    params = random_params(MODEL, 5, scale=0.05)
    with jax.default_matmul_precision("default"):
        found, wanted = (
            verify._logits(
                types.SimpleNamespace(mesh=make_mesh(MeshConfig(), [device])), MODEL, jax.device_put(params, device)
            )
            for device in (jax.devices("cuda")[0], jax.devices("cpu")[0])
        )
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_one_program_for_all_weights_of_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    run = types.SimpleNamespace(mesh=make_mesh(MeshConfig(), jax.devices()[:1]))
    traced: list[ModelConfig] = []

    def forward(config: ModelConfig, *arguments: Any) -> Any:
        traced.append(config)
        return decoder.forward(config, *arguments)

    monkeypatch.setattr(verify, "forward", forward)
    config = dataclasses.replace(MODEL, vocab=311)
    for seed in (1, 2):
        verify._logits(run, config, jax.device_put(random_params(config, seed), jax.devices()[0]))
    assert traced == [config]
