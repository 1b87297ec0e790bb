"""Sampling with a cache against forward passes without one, and against `generate` of transformers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf.families_under_test import FAMILIES, save_random, small_hf_config
from models.random_params import WINDOWED, random_params

from chopjax.errors import UserError
from chopjax.evaluate.generate import Sampling, generate, sample
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.reading import load_params
from chopjax.models.decoder import forward, logits

CONFIG, VOCAB = WINDOWED, WINDOWED.vocab
PARAMS = random_params(CONFIG)
PROMPTS = [[3], [5, 1, 30, 7, 7, 2, 19], list(range(4, 23)), [11, 12]]


@jax.jit
def _last_logits(tokens: jax.Array, length: jax.Array) -> jax.Array:
    hidden = forward(CONFIG, PARAMS, tokens[None]).hidden
    return logits(CONFIG, PARAMS, jax.lax.dynamic_index_in_dim(hidden[0], length - 1, keepdims=False))


def _plain_greedy(prompt: list[int], new_tokens: int) -> list[int]:
    tokens = np.zeros(40, np.int32)
    tokens[: len(prompt)] = prompt
    for i in range(len(prompt), len(prompt) + new_tokens):
        tokens[i] = np.argmax(_last_logits(tokens, jnp.int32(i)))
    return tokens[len(prompt) : len(prompt) + new_tokens].tolist()


def test_greedy_batch_equals_passes_without_cache() -> None:
    expected = [_plain_greedy(prompt, 13) for prompt in PROMPTS]
    assert len(set(map(tuple, expected))) > 1
    assert generate(CONFIG, PARAMS, PROMPTS, 13) == expected


def test_ends_at_eos_and_keeps_it() -> None:
    expected = [_plain_greedy(prompt, 13) for prompt in PROMPTS]
    eos = {expected[0][4], expected[2][2]}
    cut = [row[: next((i + 1 for i, token in enumerate(row) if token in eos), 13)] for row in expected]
    assert min(map(len, cut)) < 13
    assert generate(CONFIG, PARAMS, PROMPTS, 13, eos=eos) == cut


def test_narrowest_sampling_is_greedy() -> None:
    greedy = generate(CONFIG, PARAMS, PROMPTS, 5)
    key = jax.random.key(7)
    assert generate(CONFIG, PARAMS, PROMPTS, 5, temperature=2.0, key=key, top_k=3, top_p=1e-6) == greedy
    wide = generate(CONFIG, PARAMS, PROMPTS, 5, temperature=2.0, key=key)
    assert wide != greedy
    assert generate(CONFIG, PARAMS, PROMPTS, 5, temperature=2.0, key=key) == wide
    assert wide != generate(CONFIG, PARAMS, PROMPTS, 5, temperature=2.0, key=jax.random.key(8))


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0), [0, 1, 2, 3, 4]),
        (Sampling(0.5), [0, 1, 2, 3, 4]),
        (Sampling(1.0, top_k=3), [0, 2, 4]),
        (Sampling(1.0, top_p=0.6), [2, 4]),
        (Sampling(1.0, top_p=0.61), [0, 2, 4]),
        (Sampling(1.0, top_k=4, top_p=0.7), [0, 2, 4]),
    ],
)
def test_drawn_frequencies(sampling: Sampling, kept: list[int]) -> None:
    """Probabilities 0.2, 0.05, 0.35, 0.15, 0.25; at top_p = 0.6 the two largest suffice."""
    p = np.asarray([0.2, 0.05, 0.35, 0.15, 0.25])
    draws = 20_000
    rows = jnp.broadcast_to(jnp.log(jnp.asarray(p, jnp.float32))[None], (draws, 5))
    found = np.bincount(np.asarray(sample(sampling, rows, jax.random.key(0))), minlength=5) / draws
    expected = np.zeros(5)
    expected[kept] = p[kept] ** (1 / sampling.temperature)
    expected /= expected.sum()
    assert set(np.flatnonzero(found)) == set(kept)
    # Five standard deviations of a frequency.
    np.testing.assert_allclose(found, expected, atol=5 * 0.5 / draws**0.5)


def test_nothing_to_do() -> None:
    assert generate(CONFIG, PARAMS, [], 5) == []
    assert generate(CONFIG, PARAMS, [[1], [2]], 0) == [[], []]


def test_refusals() -> None:
    with pytest.raises(UserError, match="prompt 1 is empty"):
        generate(CONFIG, PARAMS, [[1], []], 3)
    with pytest.raises(UserError, match="prompt 0 .* outside of 0 to 36"):
        generate(CONFIG, PARAMS, [[VOCAB]], 3)
    with pytest.raises(UserError, match="temperature"):
        generate(CONFIG, PARAMS, [[1]], 3, temperature=-1.0)
    with pytest.raises(ValueError, match="key"):
        generate(CONFIG, PARAMS, [[1]], 3, temperature=1.0)


ROPE_OF_FAMILY = {"llama": "llama3", "mistral": "default", "qwen2": "dynamic", "qwen3": "yarn", "nemotron": "linear"}


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers_token_for_token(family: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    window = {"window": 5} if family in ("mistral", "qwen2", "qwen3") else {}
    hf_config = small_hf_config(family, rope=ROPE_OF_FAMILY[family], positions=16, eos_token_id=None, **window)
    hf_config._attn_implementation = "eager"
    model = save_random(tmp_path, hf_config)
    checkpoint = open_checkpoint(tmp_path)
    params = load_params(checkpoint)
    for prompt in ([9, 4, 33, 5, 60], list(range(7, 18))):
        with torch.no_grad():
            row = model.generate(
                torch.tensor([prompt]), max_new_tokens=17, do_sample=False, pad_token_id=0, eos_token_id=None
            )
        assert generate(checkpoint.config, params, [prompt], 17) == [row[0, len(prompt) :].tolist()]


def test_real_model_equals_transformers_token_for_token(smollm2_folder: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_folder, dtype=torch.float32, attn_implementation="eager"
    )
    checkpoint = open_checkpoint(smollm2_folder)
    params = load_params(checkpoint, dtype=jnp.float32)
    texts = ["def fibonacci(n):\n", "Once upon a time, in a small village by the sea,"]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    expected = []
    for prompt in prompts:
        with torch.no_grad():
            row = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=None)
        expected.append(row[0, len(prompt) :].tolist())
    assert generate(checkpoint.config, params, prompts, 16) == expected
