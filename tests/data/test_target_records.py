import tracemalloc
import zlib

import numpy as np
import pytest

from chopjax.data.target_records import (
    decode_draws,
    decode_top,
    encode_draws,
    encode_top,
    predicting,
    row_digest,
    row_key,
)
from chopjax.errors import UserError

LENGTH = 67
VOCABS = (13, 49_152, 70_001, 151_936)


def distributions(vocab: int, spread: float = 2.5, seed: int = 0) -> np.ndarray:
    """float64 [LENGTH, vocab], some places nearly sure of their token and some not."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(LENGTH, vocab)) * spread * random.uniform(0.3, 2.0, (LENGTH, 1))
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def top(p: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.argsort(-p, axis=1, kind="stable")[:, :k]
    rest = p.copy()
    np.put_along_axis(rest, ids, 0.0, 1)
    with np.errstate(divide="ignore"):
        tail = np.log(rest.sum(1))
    return ids.astype(np.int32), np.log(np.take_along_axis(p, ids, 1)).astype(np.float32), tail.astype(np.float32)


def some_places() -> np.ndarray:
    return np.arange(LENGTH) % 7 != 3


def divergence(probs, tail, log_q, log_q_tail):
    """sum p log p / q over the kept tokens and the tail, in float64."""
    p = np.concatenate([probs, tail[:, None]], 1).astype(np.float64)
    log_q = np.concatenate([log_q, log_q_tail[:, None]], 1)
    return np.where(p > 0, p * (np.log(np.where(p > 0, p, 1.0)) - np.where(p > 0, log_q, 0.0)), 0.0).sum(1)


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("k", [1, 12])
def test_the_most_probable_tokens_survive_to_a_divergence_of_millionths(vocab, k):
    p, kept = distributions(vocab), some_places()
    ids, log_probs, log_tail = top(p, k)
    record = encode_top(b"8 bytes.", kept, ids, log_probs, log_tail)
    found = decode_top(record, LENGTH, k, k, vocab)
    assert record[:8] == b"8 bytes."
    assert {name: (x.shape, x.dtype.name) for name, x in found.items()} == {
        "ids": ((LENGTH, k), "int32"),
        "probs": ((LENGTH, k), "float32"),
        "tail": ((LENGTH,), "float32"),
        "offset": ((LENGTH,), "float32"),
    }
    np.testing.assert_array_equal(found["ids"][kept], ids[kept])
    assert (found["ids"][~kept] == -1).all() and not found["probs"][~kept].any() and not found["tail"][~kept].any()
    # Half a step of 1/128 nat, and as much again by what makes the sum 1.
    np.testing.assert_allclose(found["probs"][kept], np.exp(log_probs[kept]), rtol=np.expm1(1 / 128), atol=1e-30)
    np.testing.assert_allclose(found["probs"][kept].sum(1) + found["tail"][kept], 1.0, rtol=1e-6)
    truth = divergence(np.exp(log_probs.astype(np.float64)), np.exp(log_tail.astype(np.float64)), log_probs, log_tail)
    assert np.abs(truth).max() < 1e-6
    with np.errstate(divide="ignore"):
        lost = divergence(
            np.exp(log_probs.astype(np.float64))[kept],
            np.exp(log_tail.astype(np.float64))[kept],
            np.log(found["probs"][kept].astype(np.float64)),
            np.log(found["tail"][kept].astype(np.float64)),
        )
    assert lost.max() < 1e-5 and lost.mean() < 4e-6
    with np.errstate(divide="ignore"):
        own = divergence(found["probs"], found["tail"], np.log(found["probs"]), np.log(found["tail"]))
    np.testing.assert_allclose(own, 0.0, atol=1e-6)  # and the offset is its own entropy
    plogp = np.where(found["probs"] > 0, found["probs"] * np.log(np.maximum(found["probs"], 1e-45)), 0).sum(1)
    tail = found["tail"].astype(np.float64)
    expected = plogp + np.where(tail > 0, tail * np.log(np.maximum(tail, 1e-300)), 0)
    np.testing.assert_allclose(found["offset"], expected, atol=2e-6)


def test_kl_to_a_student_changes_negligibly():
    """The figure that matters: the loss against a student that is some tenths of a nat away."""
    vocab, k = 4999, 64
    p = distributions(vocab, spread=1.8)
    student = np.log(p) + np.random.default_rng(1).normal(size=p.shape)
    student -= np.log(np.exp(student).sum(1, keepdims=True))
    ids, log_probs, log_tail = top(p, k)
    found = decode_top(encode_top(bytes(8), np.ones(LENGTH, bool), ids, log_probs, log_tail), LENGTH, k, k, vocab)
    log_q = np.take_along_axis(student, ids, 1)
    log_q_tail = np.log1p(-np.exp(log_q).sum(1))
    exact = divergence(np.exp(log_probs.astype(np.float64)), np.exp(log_tail.astype(np.float64)), log_q, log_q_tail)
    cached = found["offset"] - (found["probs"] * log_q).sum(1) - found["tail"] * log_q_tail
    assert exact.mean() > 0.1
    np.testing.assert_allclose(cached.mean(), exact.mean(), rtol=1e-3)
    np.testing.assert_allclose(cached, exact, atol=5e-3)


def test_a_tiny_tail_is_kept_and_none_is_none():
    ids = np.zeros((LENGTH, 1), np.int32)
    log_tail = np.linspace(-60.0, -1e-3, LENGTH).astype(np.float32)
    log_tail[5] = -np.inf
    log_probs = np.log1p(-np.exp(log_tail.astype(np.float64)))[:, None].astype(np.float32)
    found = decode_top(encode_top(bytes(8), np.ones(LENGTH, bool), ids, log_probs, log_tail), LENGTH, 1, 1, 1)
    assert found["tail"][5] == 0 and found["probs"][5, 0] == 1 and found["offset"][5] == 0
    others = np.arange(LENGTH) != 5
    np.testing.assert_allclose(found["tail"][others], np.exp(log_tail[others]), rtol=0.02)
    assert 0 < found["tail"][0] < 1e-25


def test_fewer_tokens_than_were_kept():
    p = distributions(997)
    record = encode_top(bytes(8), some_places(), *top(p, 20))
    many, few = (decode_top(record, LENGTH, k, 20, 997) for k in (20, 6))
    np.testing.assert_array_equal(few["ids"], many["ids"][:, :6])
    np.testing.assert_array_equal(few["probs"], many["probs"][:, :6])
    np.testing.assert_allclose(few["tail"], many["tail"] + many["probs"][:, 6:].sum(1), rtol=1e-6)
    # Joining outcomes loses entropy.
    kept = some_places()
    assert (few["offset"][kept] > many["offset"][kept]).all() and (few["offset"] <= 0).all()


@pytest.mark.parametrize("vocab", VOCABS)
def test_draws_survive_exactly(vocab):
    random = np.random.default_rng(vocab)
    kept, draws = some_places(), 50
    ids, counts = np.full((LENGTH, draws), -1, np.int32), np.zeros((LENGTH, draws), np.int32)
    for place, p in enumerate(distributions(vocab)):
        drawn, times = np.unique(random.choice(vocab, draws, p=p), return_counts=True)
        at = np.sort(random.choice(draws, len(drawn), replace=False))  # unused places may lie anywhere
        ids[place, at], counts[place, at] = drawn, times
    entropy = random.uniform(0, 11, LENGTH).astype(np.float32)
    found = decode_draws(encode_draws(bytes(8), kept, ids, counts, entropy), LENGTH, draws, vocab)
    for place in range(LENGTH):
        used = (ids[place] >= 0) & kept[place]
        size = used.sum()
        np.testing.assert_array_equal(found["ids"][place, :size], ids[place, used])
        np.testing.assert_array_equal(found["probs"][place, :size], (counts[place, used] / draws).astype(np.float32))
        assert (found["ids"][place, size:] == -1).all() and not found["probs"][place, size:].any()
    assert not found["tail"].any()
    np.testing.assert_allclose(found["offset"], np.where(kept, -entropy, 0), atol=1 / 8192 + 1e-6)


def test_many_draws_of_one_token():
    ids, counts = np.array([[12, -1]]), np.array([[60_000, 0]])
    found = decode_draws(encode_draws(bytes(8), np.ones(1, bool), ids, counts, np.zeros(1)), 1, 60_000, 13)
    assert found["ids"][0, 0] == 12 and found["probs"][0, 0] == 1.0


@pytest.mark.parametrize("kind", ["top", "draws"])
def test_rows_without_anything_to_predict(kind):
    none, ids = np.zeros(LENGTH, bool), np.zeros((LENGTH, 3), np.int32)
    if kind == "top":
        found = decode_top(encode_top(bytes(8), none, ids, ids.astype(np.float32), np.zeros(LENGTH)), LENGTH, 3, 3, 1)
    else:
        found = decode_draws(encode_draws(bytes(8), none, ids, ids, np.zeros(LENGTH)), LENGTH, 3, 1)
    assert (found["ids"] == -1).all() and not any(found[name].any() for name in ("probs", "tail", "offset"))


@pytest.mark.parametrize("vocab", [13, 49_152, 70_001, 151_936])
def test_bytes_of_an_entry_are_near_those_of_a_uniform_code(vocab):
    """Ids that are all equally likely cannot take less than log2 of the vocabulary; planes take hardly more."""
    random = np.random.default_rng(0)
    length, k = 600, 32
    ids = random.integers(0, vocab, (length, k))
    flat = np.zeros((length, k), np.float32)
    record = encode_top(bytes(8), np.ones(length, bool), ids, flat, np.full(length, -1.0))
    bits = 8 * len(record) / ids.size
    assert np.log2(vocab) < bits < np.log2(vocab) + 0.6


def test_damage_is_noticed():
    record = encode_top(bytes(8), some_places(), *top(distributions(99), 5))
    with pytest.raises(UserError, match="cut short"):
        decode_top(record[:-30], LENGTH, 5, 5, 99)
    with pytest.raises(UserError, match="length or kind"):
        decode_top(record, LENGTH + 1, 5, 5, 99)
    with pytest.raises(UserError, match="length or kind|more tokens"):
        decode_draws(record, LENGTH, 5, 99)
    with pytest.raises(UserError, match="more than its row has"):
        decode_top(record, LENGTH, 4, 4, 99)


def test_tokens_beyond_the_vocabulary_are_refused():
    ids, kept = np.full((LENGTH, 2), 98), some_places()
    top_record = encode_top(bytes(8), kept, ids, np.full(ids.shape, -1.0), np.full(LENGTH, -1.0))
    draws = encode_draws(bytes(8), kept, np.array([[97, 98]] * LENGTH), np.ones(ids.shape, int), np.zeros(LENGTH))
    decode_top(top_record, LENGTH, 2, 2, 99), decode_draws(draws, LENGTH, 2, 99)
    with pytest.raises(UserError, match="it holds a token beyond the vocabulary of 98"):
        decode_top(top_record, LENGTH, 2, 2, 98)
    with pytest.raises(UserError, match="it holds a token beyond the vocabulary of 98"):
        decode_draws(draws, LENGTH, 2, 98)


def test_a_plane_that_inflates_to_more_than_its_row_is_not_inflated():
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(64)) + deflate.flush()
    record = bytes(8) + len(bomb).to_bytes(4, "little") + bomb
    tracemalloc.start()
    for decode in (lambda: decode_top(record, LENGTH, 5, 5, 99), lambda: decode_draws(record, LENGTH, 5, 99)):
        with pytest.raises(UserError, match="it inflates to more than its row has"):
            decode()
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_digests_and_keys_are_of_content_alone():
    """Fixed values, so that a cache written by any process is read by any other."""
    tokens, segments = np.arange(9, dtype=np.int32), np.ones(9, np.int32)
    digest = row_digest(tokens, segments)
    assert digest == row_digest(tokens.astype(np.int64), segments)
    assert digest.hex() == "86e2baf8a2d54329"
    assert len({digest, row_digest(tokens[::-1], segments), row_digest(tokens, 2 * segments)}) == 3
    key = row_key(3, 5, digest)
    assert key.dtype == np.uint32 and key.shape == (2,)
    others = [row_key(4, 5, digest), row_key(3, 6, digest), row_key(3, 5, bytes(8)), row_key(-3, 5, digest)]
    assert len({tuple(other) for other in [key, *others]}) == 5


def test_what_is_kept_is_what_the_loss_counts():
    from chopjax.data.labels import next_token_labels

    random = np.random.default_rng(0)
    segments = np.array([[1, 1, 1, 2, 2, 3, 4, 4, 0, 0], [1] * 10, [0] * 10])
    targets = random.random(segments.shape) < 0.5
    for given in (None, targets):
        _, weights = next_token_labels(segments, segments, given)
        for row in range(len(segments)):
            found = predicting(segments[row], None if given is None else given[row])
            np.testing.assert_array_equal(found, np.asarray(weights[row]) > 0)
