import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from chopjax.distill import targets
from chopjax.distill.sparse import draw_tokens, top_tokens
from chopjax.errors import UserError
from chopjax.sharding.mesh import Constrain, make_mesh
from chopjax.sharding.rules import MeshConfig

BATCH, LENGTH, EMBED, VOCAB, TOKENS = 8, 5, 6, 41, 37


# The vocabulary, padded to an even number, is split over two devices, and rows over four.
MESH = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
OPTIONS = {"vocab_tokens": TOKENS, "constrain": Constrain(MESH), "chunk": 24}


def on_mesh(array):
    return jax.device_put(array, jax.NamedSharding(MESH, PartitionSpec(("data", "fsdp"))))


def placed(model):
    return on_mesh(model[0]), np.pad(model[1], ((0, 0), (0, 1)))


@pytest.fixture(scope="module")
def model():
    random = np.random.default_rng(3)
    hidden = random.normal(size=(BATCH, LENGTH, EMBED)).astype(np.float32)
    return hidden, random.normal(size=(EMBED, VOCAB)).astype(np.float32)


def dense(hidden, unembed, temperature=1.0, tokens=TOKENS):
    """The float64 distribution, [batch, length, tokens]."""
    logits = (hidden.astype(np.float64) @ unembed.astype(np.float64))[..., :tokens] / temperature
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def keys(rows, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, (rows, 2), np.uint32)


@pytest.mark.parametrize(("chunk", "temperature"), [(1, 1.0), (24, 2.5), (1000, 2.5)])
def test_top_tokens_are_those_of_the_dense_distribution(model, chunk, temperature):
    p = dense(*model, temperature)
    found = top_tokens(*model, 7, temperature=temperature, vocab_tokens=TOKENS, chunk=chunk)
    expected = np.argsort(-p, axis=-1)[..., :7]
    np.testing.assert_array_equal(found.ids, expected)
    top = np.take_along_axis(p, expected, -1)
    np.testing.assert_allclose(np.exp(found.log_probs), top, rtol=1e-5)
    np.testing.assert_allclose(np.exp(found.log_tail), 1 - top.sum(-1), rtol=1e-5)


def test_the_tail_is_exact_where_it_is_tiny_and_where_tokens_tie():
    # One dimension: the logits of token i are those of column i.
    logits = np.array([[0.0, 60.0, 0.0, 3.0, 3.0, 3.0]], np.float32)
    found = top_tokens(np.ones((1, 1, 1), np.float32), logits, 3)
    np.testing.assert_array_equal(found.ids, [[[1, 3, 4]]])
    total = np.log(np.exp(60.0) + 3 * np.exp(3.0) + 2)
    np.testing.assert_allclose(found.log_tail, [[np.log(np.exp(3.0) + 2) - total]], rtol=1e-6)  # 1e-25


def test_all_tokens_leave_no_tail(model):
    found = top_tokens(*model, TOKENS, vocab_tokens=TOKENS)
    assert np.all(np.asarray(found.log_tail) == -np.inf)
    sparse = found.sparse()
    p = dense(*model)
    np.testing.assert_allclose(sparse.offset, (p * np.log(p)).sum(-1), rtol=1e-5)
    assert np.asarray(sparse.ids).max() == TOKENS - 1


def test_the_offset_makes_a_divergence(model):
    sparse = top_tokens(*model, 4, vocab_tokens=TOKENS).sparse()
    with_tail = np.concatenate([np.asarray(sparse.probs), np.asarray(sparse.tail)[..., None]], -1).astype(np.float64)
    np.testing.assert_allclose(sparse.offset, (with_tail * np.log(with_tail)).sum(-1), rtol=1e-5)


@pytest.mark.parametrize("draws", [1, 16])
def test_draws_are_counted(model, draws):
    found = draw_tokens(*model, keys(BATCH), draws, vocab_tokens=TOKENS)
    ids, counts = np.asarray(found.ids), np.asarray(found.counts)
    assert ids.shape == counts.shape == (BATCH, LENGTH, draws)
    np.testing.assert_array_equal(counts.sum(-1), draws)
    np.testing.assert_array_equal(counts > 0, ids >= 0)
    assert ids.max() < TOKENS
    for row in ids.reshape(-1, draws):
        used = row[row >= 0]
        np.testing.assert_array_equal(used, np.unique(used))
    p = dense(*model)
    np.testing.assert_allclose(found.entropy, -(p * np.log(p)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(found.sparse().probs, counts / draws, rtol=1e-6)


def test_the_gradient_of_draws_is_unbiased(model):
    """q - counts / N against q - p: over many independent draws the mean differs by sampling error alone."""
    hidden = jnp.broadcast_to(model[0][:1, :1], (64, 256, EMBED))
    p = dense(model[0][:1, :1], model[1])[0, 0]
    found = draw_tokens(hidden, model[1], keys(64), 12, vocab_tokens=TOKENS, chunk=4096)
    frequency = np.zeros((64 * 256, TOKENS + 1))
    rows = np.arange(64 * 256)[:, None]
    np.add.at(frequency, (rows, np.asarray(found.ids).reshape(-1, 12)), np.asarray(found.counts).reshape(-1, 12) / 12)
    frequency = frequency[:, :TOKENS]
    q = dense(model[0][:1, 1:2], model[1])[0, 0]
    error = (q - frequency).mean(0) - (q - p)
    deviation = np.sqrt(p * (1 - p) / 12 / len(frequency))
    z = error / deviation
    assert np.abs(z).max() < 4.0
    # Neither too good: independent draws give z of unit variance.
    assert 0.5 < (z**2).mean() < 1.7
    # The draws of one position are independent too: the variance of its frequencies is that of 12 draws.
    np.testing.assert_allclose(frequency.var(0), p * (1 - p) / 12, rtol=0.1, atol=2e-5)


def test_rare_tokens_are_drawn_rightly_from_a_large_vocabulary():
    """4,000 tokens share a thousandth, after one token that has the rest: what one running sum would blur."""
    vocab = 50_001
    logits = np.full((1, vocab), -40.0, np.float32)
    logits[0, 0] = np.log(0.999)
    rare = slice(vocab - 4000, vocab)
    logits[0, rare] = np.log(1e-3 / 4000)
    hidden = np.ones((4, 16, 1), np.float32)
    ids, counts = (np.asarray(x) for x in jax.tree.leaves(draw_tokens(hidden, logits, keys(4), 4096, chunk=16))[:2])
    rare_count = counts[ids >= vocab - 4000].sum()
    total = 64 * 4096
    assert counts[(ids > 0) & (ids < vocab - 4000)].sum() == 0
    assert abs(rare_count - 1e-3 * total) < 5 * np.sqrt(1e-3 * total)


def test_a_row_is_the_same_in_any_batch_chunk_and_mesh(model):
    whole = jax.jit(functools.partial(draw_tokens, draws=9, vocab_tokens=TOKENS))(*model, keys(BATCH))
    few = draw_tokens(model[0][3:5], model[1], keys(BATCH)[3:5], 9, vocab_tokens=TOKENS, chunk=3)
    np.testing.assert_array_equal(np.asarray(whole.ids)[3:5], few.ids)
    np.testing.assert_array_equal(np.asarray(whole.counts)[3:5], few.counts)
    drawn = jax.jit(functools.partial(draw_tokens, draws=9, **OPTIONS))(*placed(model), on_mesh(keys(BATCH)))
    np.testing.assert_array_equal(whole.ids, drawn.ids)
    np.testing.assert_array_equal(whole.counts, drawn.counts)


def test_each_device_searches_its_own_rows(model):
    """And partly: a full sort of each row takes XLA a hundred times as long."""
    found = jax.jit(functools.partial(top_tokens, k=5, **OPTIONS)).lower(*placed(model)).compile()
    text = found.as_text()
    # A chunk is 3 positions of 8 rows, of which a device has 2.
    assert 'custom_call_target="TopK"' in text and " sort(" not in text
    (shape,) = re.findall(r"= \(f32\[(\d+),5\].*custom-call\(", text)
    assert int(shape) == 2 * 3
    alone = top_tokens(*model, 5, vocab_tokens=TOKENS)
    top = found(*placed(model))
    np.testing.assert_array_equal(top.ids, alone.ids)
    np.testing.assert_allclose(top.log_probs, alone.log_probs, rtol=1e-5, atol=1e-6)


def test_no_array_of_all_tokens_and_all_words(model):
    """However long the rows, nothing larger than a chunk's logits is made."""
    hidden = jax.ShapeDtypeStruct((2, 640, EMBED), jnp.float32)
    unembed = jax.ShapeDtypeStruct((EMBED, 977), jnp.float32)
    for function, more in ((functools.partial(top_tokens, k=4), ()), (functools.partial(draw_tokens, draws=4), (1,))):
        arguments = [hidden, unembed, *(jax.ShapeDtypeStruct((2, 2), jnp.uint32) for _ in more)]
        compiled = jax.jit(functools.partial(function, chunk=16)).lower(*arguments).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 1280 * 977 * 4 / 4


def test_too_few_words_are_refused(model):
    with pytest.raises(UserError, match=r"cache\.k is 38, but the tokenizer has only 37 tokens"):
        top_tokens(*model, 38, vocab_tokens=TOKENS)
    with pytest.raises(UserError, match="42 tokens but the teacher has only 41"):
        draw_tokens(*model, keys(BATCH), 2, vocab_tokens=42)


def test_targets_of_a_batch(model):
    sparse = top_tokens(*model, 3).sparse()
    batch = {f"target_{name}": getattr(sparse, name) for name in ("ids", "probs", "tail", "offset")}
    found = targets.of_batch({"tokens": np.zeros((BATCH, LENGTH)), **batch})
    assert all(one is other for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(sparse), strict=True))
    assert targets.of_batch({"tokens": np.zeros((BATCH, LENGTH))}) is None
