"""Logits in float32 against transformers, for every family and what it lets vary."""

import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
import transformers
from hf.families_under_test import FAMILIES, options, rope_parameters, save_random, small_hf_config

from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.reading import load_params
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Params, forward, logits

TOLERANCE = 1e-4
LENGTH = 13
# The sequence is longer than the model's positions, than the original ones (a quarter of them), or than neither.
POSITIONS = (8, 40, 100)
HEALTH = list(HealthCheck)


def _logits(config: ModelConfig, params: Params, tokens: np.ndarray) -> np.ndarray:
    @jax.jit
    def run(params: Params, tokens: jax.Array) -> jax.Array:
        return logits(config, params, forward(config, params, tokens).hidden)

    return np.asarray(run(params, tokens))


def _difference(found: np.ndarray, model: Any, tokens: np.ndarray) -> float:
    """max |Δ| over max |reference|."""
    assert model.config._attn_implementation == "eager"
    with torch.no_grad():
        expected = model(torch.tensor(tokens, dtype=torch.int64)).logits.numpy()
    assert np.abs(expected).max() > 0.1
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("rope", ["default", "linear", "dynamic", "llama3", "yarn", "longrope"])
@pytest.mark.parametrize("family", FAMILIES)
def test_random_model_equals_transformers(family: str, rope: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    # The first example is the simplest one, the second another for each family and rule, the same in every run;
    # neither is made simpler on failure, which would compile for minutes.
    @seed(zlib.crc32(f"{family} {rope}".encode()))
    @settings(max_examples=2, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=HEALTH)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        chosen = data.draw(options(family)) | {"rope": rope, "positions": data.draw(st.sampled_from(POSITIONS))}
        chosen["heads"] = data.draw(st.sampled_from([(9, 3), (4, 2), (2, 2), (6, 1)]))
        if family in ("qwen2", "qwen3") and chosen["window"] and data.draw(st.booleans()):
            kinds = st.sampled_from(["full_attention", "sliding_attention"])
            chosen["layer_types"] = data.draw(st.lists(kinds, min_size=chosen["layers"], max_size=chosen["layers"]))
        if rope == "yarn" and family != "nemotron":
            extra = {"mscale": 0.8, "mscale_all_dim": 0.5, "truncate": data.draw(st.booleans())}
            chosen["rope_parameters"] = rope_parameters(rope, 6, chosen["positions"]) | extra
        hf_config = small_hf_config(family, **chosen)
        hf_config._attn_implementation = "eager"
        folder = tmp_path_factory.mktemp(family)
        model = save_random(folder, hf_config, seed=data.draw(st.integers(0, 99)))
        checkpoint = open_checkpoint(folder)
        tokens = np.random.default_rng(0).integers(0, hf_config.vocab_size, (2, LENGTH)).astype(np.int32)
        found = _logits(checkpoint.config, load_params(checkpoint), tokens)
        assert _difference(found, model, tokens) <= TOLERANCE

    check()


def test_real_model_equals_transformers(smollm2_folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_folder, dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_folder)
    text = "The capital of France is Paris. def f(x):\n    return x ** 2  # 42, naïve café"
    tokens = np.asarray([tokenizer(text)["input_ids"]], np.int32)
    checkpoint = open_checkpoint(smollm2_folder)
    found = _logits(checkpoint.config, load_params(checkpoint, dtype=jnp.float32), tokens)
    assert _difference(found, model, tokens) <= TOLERANCE
