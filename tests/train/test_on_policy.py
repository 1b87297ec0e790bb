"""Rows that the student goes on with: what is kept, what is drawn and from what, and that no mesh changes it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.random_params import WINDOWED, random_params

from chopjax.aot.hlo_text import parse
from chopjax.data.packing import positions_of
from chopjax.distill.on_policy_config import OnPolicyConfig
from chopjax.errors import UserError
from chopjax.evaluate.generate import generate
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import forward, logits
from chopjax.sharding.mesh import Constrain, batch_sharding, make_mesh, param_shardings, place_batch, replicated
from chopjax.sharding.rules import MeshConfig
from chopjax.train.on_policy import compile_sampler, is_sampled, sampled_batch

CONFIG, PARAMS = WINDOWED, random_params(WINDOWED)
LENGTH, PROMPT = 20, 7
NEW = LENGTH - PROMPT
# Cut in the second segment, in the first, right behind a segment's only token, in padding, and of padding alone.
SEGMENTS = np.asarray(
    [
        [1] * 3 + [2] * 12 + [3] * 5,
        [1] * 20,
        [1] * 2 + [2] * 4 + [3] + [4] * 13,
        [1] * 2 + [2] * 3 + [0] * 15,
        [0] * 20,
    ],
    np.int32,
)
BATCH = {
    "tokens": np.where(SEGMENTS > 0, np.random.default_rng(3).integers(0, CONFIG.vocab, SEGMENTS.shape), 0).astype(
        np.int32
    ),
    "segment_ids": SEGMENTS,
    "positions": positions_of(SEGMENTS),
}
# Where the text that the student goes on with stands in each row that has one.
TEXTS = [(3, 7), (0, 7), (6, 7), (2, 5)]
PROMPTS = [BATCH["tokens"][i, start:end].tolist() for i, (start, end) in enumerate(TEXTS)]
KEY = jax.random.key(11)


@functools.cache
def _sampler(temperature: float = 0.0, vocab_tokens: int | None = None, eos: tuple[int, ...] = (), **options):
    chosen = OnPolicyConfig(share=1.0, prompt=PROMPT, temperature=temperature, **options)

    def sampler(params, batch, key):
        return sampled_batch(
            CONFIG, params, batch, key, chosen, compute_dtype="float32", vocab_tokens=vocab_tokens, eos=eos
        )

    return jax.jit(sampler)


def _sampled(*args, key=KEY, batch=BATCH, **options) -> dict[str, np.ndarray]:
    return jax.device_get(_sampler(*args, **options)(PARAMS, batch, key))


@functools.cache
def _greedy() -> list[list[int]]:
    return generate(CONFIG, PARAMS, PROMPTS, NEW)


def test_keeps_the_prompts_and_goes_on_as_generate_does() -> None:
    found = _sampled()
    assert found["tokens"][:4, PROMPT:].tolist() == _greedy()
    assert len(set(map(tuple, _greedy()))) == 4
    for name in BATCH:
        assert found[name].dtype == np.int32 and found[name].shape == (5, LENGTH)
        np.testing.assert_array_equal(found[name][:3, :PROMPT], BATCH[name][:3, :PROMPT])
    assert found["segment_ids"][:, PROMPT - 1 :].tolist() == [[n] * (NEW + 1) for n in (2, 1, 3, 2, 0)]
    assert found["positions"][:3, PROMPT].tolist() == [4, 7, 1]
    np.testing.assert_array_equal(found["positions"], positions_of(found["segment_ids"]))
    places = np.arange(LENGTH)[None]
    np.testing.assert_array_equal(found["targets"], (places >= PROMPT) & (np.arange(5)[:, None] < 4))


def test_a_prompt_in_padding_is_moved_to_its_end() -> None:
    found = _sampled()
    assert found["tokens"][3, :PROMPT].tolist() == [0, 0, *BATCH["tokens"][3, :5]]
    assert found["segment_ids"][3, :PROMPT].tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert found["positions"][3, : PROMPT + 2].tolist() == [0, 0, 0, 1, 0, 1, 2, 3, 4]
    for name in found:
        assert not found[name][4].any()  # a row of padding stays one


def test_a_pass_over_the_result_predicts_what_was_drawn() -> None:
    found = _sampled()
    inputs = found["tokens"], found["positions"], found["segment_ids"]
    likely = np.argmax(logits(CONFIG, PARAMS, forward(CONFIG, PARAMS, *map(jnp.asarray, inputs)).hidden), axis=-1)
    np.testing.assert_array_equal(likely[:4, PROMPT - 1 : -1], found["tokens"][:4, PROMPT:])


def test_draws_are_those_of_generate_and_follow_the_key() -> None:
    found = _sampled(0.9)
    assert found["tokens"][:4, PROMPT:].tolist() == generate(CONFIG, PARAMS, PROMPTS, NEW, 0.9, KEY)
    np.testing.assert_array_equal(_sampled(0.9)["tokens"], found["tokens"])
    other = _sampled(0.9, key=jax.random.key(12))["tokens"]
    np.testing.assert_array_equal(other[:, :PROMPT], found["tokens"][:, :PROMPT])
    assert np.mean(other[:4, PROMPT:] != found["tokens"][:4, PROMPT:]) > 0.5


def test_top_k_and_top_p_reach_the_sampler() -> None:
    for options in ({"top_k": 1}, {"top_p": 1e-6}):
        assert _sampled(1.0, **options)["tokens"][:4, PROMPT:].tolist() == _greedy()


def test_after_an_end_there_is_padding() -> None:
    """The first row draws an end after a while, the third at once, and the second had ended in its prompt."""
    eos = (_greedy()[0][4], _greedy()[2][0], PROMPTS[1][-1])
    found = _sampled(eos=eos)
    written = []
    for prompt, row in zip(PROMPTS, _greedy(), strict=True):
        ends = [i + 1 for i, token in enumerate(row) if token in eos]
        written.append(0 if prompt[-1] in eos else (ends or [NEW])[0])
    assert 1 < written[0] <= 5 and written[1:3] == [0, 1]
    for i, count in enumerate([*written, 0]):
        end = PROMPT + count
        assert found["targets"][i].tolist() == [False] * PROMPT + [True] * count + [False] * (NEW - count)
        for name in BATCH:
            assert not found[name][i, end:].any()
        if i < 3:
            np.testing.assert_array_equal(found["tokens"][i, :PROMPT], BATCH["tokens"][i, :PROMPT])
        if count:
            assert found["tokens"][i, PROMPT:end].tolist() == _greedy()[i][:count]
            assert (found["segment_ids"][i, PROMPT:end] == found["segment_ids"][i, PROMPT - 1]).all()
            assert found["positions"][i, end - 1] == len(PROMPTS[i]) + count - 1


def test_words_beyond_the_tokenizer_are_never_drawn() -> None:
    hot = _sampled(50.0, 6)["tokens"][:4, PROMPT:]
    assert set(np.unique(hot)) == set(range(6))
    assert _sampled(0.9)["tokens"][:4, PROMPT:].max() >= 6


def test_only_the_text_to_be_continued_is_seen() -> None:
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, CONFIG.vocab, SEGMENTS.shape).astype(np.int32)
    for i, (start, end) in enumerate(TEXTS):
        tokens[i, start:end] = PROMPTS[i]
    found = _sampled(batch=BATCH | {"tokens": tokens})
    assert found["tokens"][:4, PROMPT:].tolist() == _greedy()


def test_no_gradient_flows_through_sampling() -> None:
    def loss(params):
        last = _sampler(0.9)(params, BATCH, KEY)["tokens"][:4, -1]
        return jnp.sum(params["embed"]["table"][last])

    gradients = jax.jit(jax.grad(loss))(PARAMS)
    counts = np.bincount(_sampled(0.9)["tokens"][:4, -1], minlength=CONFIG.vocab)
    table = gradients["embed"].pop("table")
    np.testing.assert_array_equal(table, np.broadcast_to(counts[:, None], table.shape))
    for gradient in jax.tree.leaves(gradients):
        assert not np.any(gradient)


def test_samples_in_the_compute_dtype() -> None:
    chosen = OnPolicyConfig(share=1.0, prompt=PROMPT)
    traced = str(jax.make_jaxpr(lambda params: sampled_batch(CONFIG, params, BATCH, KEY, chosen))(PARAMS))
    cache = f"[{CONFIG.layers},5,{LENGTH - 1},{CONFIG.kv_heads},{CONFIG.head_dim}]"
    assert f"bf16{cache}" in traced and f"f32{cache}" not in traced


def test_a_prompt_as_long_as_a_row_is_refused() -> None:
    with pytest.raises(UserError, match="on_policy.prompt is 20, but rows have 20 tokens"):
        sampled_batch(CONFIG, PARAMS, BATCH, KEY, OnPolicyConfig(share=1.0, prompt=LENGTH))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.5, 2 / 3])
def test_shares_of_steps_are_exact(share: float) -> None:
    for seed in (0, 1, 7):
        taken = np.asarray([is_sampled(seed, step, share) for step in range(1000)])
        counts = np.concatenate([[0], np.cumsum(taken)])
        for n in (1, 10, 60, 999):
            # The number among any n in a row.
            assert np.all(np.abs(counts[n:] - counts[:-n] - n * share) < 1)
    assert sum(is_sampled(3, step, 0.1) for step in range(10**6, 10**6 + 1000)) == 100


def test_the_seed_shifts_the_steps() -> None:
    patterns = {tuple(is_sampled(seed, step, 0.2) for step in range(5)) for seed in range(40)}
    assert patterns == {tuple(i == j for j in range(5)) for i in range(5)}
    steps = list(itertools.product((0, 1, -4, 2**62), range(5)))
    assert not any(is_sampled(seed, step, 0.0) for seed, step in steps)
    assert all(is_sampled(seed, step, 1.0) and is_sampled(seed, step, 1) for seed, step in steps)


# As SmolLM2: 3 key/value heads, which no mesh axis of 2 divides; a padded vocabulary.
SPREAD = ModelConfig(layers=2, embed=72, kv_heads=3, q_per_kv=3, head_dim=6, mlp=50, vocab=16 * 7, positions=13)
FALLBACKS = ("kv_heads",)
ROWS, EOS, WORDS = 8, (5, 17, 60), 107


@functools.cache
def _rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(9)
    segments = np.where(np.arange(13)[None] < rng.integers(3, 14, (ROWS, 1)), 1, 0).astype(np.int32)
    segments[:4, 2:] *= 2
    tokens = np.where(segments > 0, rng.integers(0, WORDS, segments.shape), 0).astype(np.int32)
    return {"tokens": tokens, "segment_ids": segments, "positions": positions_of(segments)}


@functools.cache
def _on_mesh(shape: tuple[int, int, int], gather: bool):
    mesh = make_mesh(MeshConfig(*shape, fallbacks=FALLBACKS), jax.devices()[: int(np.prod(shape))])
    shardings = param_shardings(SPREAD, mesh, FALLBACKS)
    chosen = OnPolicyConfig(share=0.5, prompt=5, temperature=0.8, gather=gather)
    pin = Constrain(mesh, FALLBACKS)
    sampler = compile_sampler(
        SPREAD, chosen, shardings, mesh, 4, constrain=pin, compute_dtype="float32", vocab_tokens=WORDS, eos=EOS
    )
    step = jax.device_put(jnp.int32(3), replicated(mesh))
    given = jax.device_put(random_params(SPREAD), shardings), step, place_batch(mesh, _rows())
    return sampler.lower(*given).compile(), given


@functools.cache
def _on_one_device() -> dict[str, np.ndarray]:
    sampler, given = _on_mesh((1, 1, 1), True)
    return jax.device_get(sampler(*given))


@pytest.mark.parametrize(("shape", "gather"), [((1, 8, 1), True), ((2, 2, 2), True), ((1, 8, 1), False)])
def test_same_tokens_on_every_mesh(shape: tuple[int, int, int], gather: bool) -> None:
    sampler, given = _on_mesh(shape, gather)
    with jax.transfer_guard("disallow"):
        found = sampler(*given)
    expected = _on_one_device()
    assert {name: array.shape for name, array in found.items()} == {name: (ROWS, 13) for name in (*_rows(), "targets")}
    assert 0 < np.sum(expected["targets"][:, -1]) < ROWS  # some rows end, some do not
    for name in expected:
        assert found[name].sharding == batch_sharding(given[1].sharding.mesh)
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("gather", [True, False])
def test_parameters_are_gathered_once_and_not_for_every_token(gather: bool) -> None:
    module = parse(_on_mesh((1, 8, 1), gather)[0].as_text())
    gathering = {
        name
        for name, computation in module.computations.items()
        if any(instruction.opcode.startswith("all-gather") for instruction in computation.values())
    }
    assert (gathering == {module.entry}) == gather


def test_the_step_is_part_of_the_key() -> None:
    sampler, (params, step, batch) = _on_mesh((1, 1, 1), True)
    assert np.any(np.asarray(sampler(params, step + 1, batch)["tokens"]) != _on_one_device()["tokens"])
