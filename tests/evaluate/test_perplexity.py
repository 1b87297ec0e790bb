"""Perplexity and KL against plain computation on full logits in float64."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.random_params import WINDOWED, random_params

from chopjax.errors import UserError
from chopjax.evaluate.perplexity import evaluate_rows, rolling_perplexity, rolling_windows
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import forward, logits
from chopjax.sharding.mesh import Constrain, make_mesh
from chopjax.sharding.rules import MeshConfig

CONFIG, VOCAB = WINDOWED, WINDOWED.vocab
TEACHER = ModelConfig(layers=2, embed=13, kv_heads=1, q_per_kv=2, head_dim=4, mlp=9, vocab=VOCAB, positions=64)
PARAMS, TEACHER_PARAMS = random_params(CONFIG), random_params(TEACHER, seed=1)


@jax.jit
def _student_log_p(tokens: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits(CONFIG, PARAMS, forward(CONFIG, PARAMS, tokens).hidden))


@jax.jit
def _teacher_log_p(tokens: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits(TEACHER, TEACHER_PARAMS, forward(TEACHER, TEACHER_PARAMS, tokens).hidden))


def _log_p(function: Callable[..., jax.Array], document: np.ndarray, width: int = 24) -> np.ndarray:
    """float64 [length, vocab]; causal, so what fills up the end changes nothing."""
    padded = np.zeros((1, width), np.int32)
    padded[0, : len(document)] = document
    return np.asarray(function(padded), np.float64)[0, : len(document)]


Documents = list[np.ndarray]


def _rows(
    rng: np.random.Generator, documents_of_row: Sequence[Sequence[int]], length: int
) -> tuple[dict[str, np.ndarray], Documents]:
    """Packed rows, and the documents in them."""
    batch = {
        name: np.zeros((len(documents_of_row), length), np.int32) for name in ("tokens", "segment_ids", "positions")
    }
    documents = []
    for row, lengths in enumerate(documents_of_row):
        at = 0
        for segment, n in enumerate(lengths, 1):
            document = rng.integers(0, VOCAB, n).astype(np.int32)
            place = np.s_[row, at : at + n]
            batch["tokens"][place], batch["segment_ids"][place] = document, segment
            batch["positions"][place] = np.arange(n)
            documents.append(document)
            at += n
        batch["tokens"][row, at:] = rng.integers(0, VOCAB, length - at)  # padding need not be a fixed token
    return batch, documents


def _nlls(documents: Documents) -> np.ndarray:
    return np.concatenate([-_log_p(_student_log_p, d)[np.arange(len(d) - 1), d[1:]] for d in documents])


def _kls(documents: Documents) -> Iterator[float]:
    for document in documents:
        p, q = (_log_p(f, document)[:-1] for f in (_teacher_log_p, _student_log_p))
        yield from np.sum(np.exp(p) * (p - q), axis=-1)


BATCHES = [((19,), (7, 1, 9), ()), ((2, 3, 13), (1,), (5, 11))]


@pytest.mark.parametrize("chunk", [5, 512])
def test_rows_equal_dense_reference(chunk: int) -> None:
    rng = np.random.default_rng(3)
    packed = [_rows(rng, rows, 19) for rows in BATCHES]
    batches, documents = [batch for batch, _ in packed], [d for _, some in packed for d in some]
    teacher = (TEACHER, TEACHER_PARAMS)
    found = evaluate_rows(CONFIG, PARAMS, iter(batches), teacher=teacher, chunk=chunk)
    nlls = _nlls(documents)
    assert found.tokens == len(nlls) == 18 + 6 + 8 + 1 + 2 + 12 + 4 + 10
    assert found.nll == pytest.approx(nlls.mean(), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(nlls.mean()), rel=1e-4)
    assert found.kl == pytest.approx(np.mean(list(_kls(documents))), rel=1e-5)


def test_kl_to_itself_is_zero_and_without_teacher_none() -> None:
    batch, _ = _rows(np.random.default_rng(0), BATCHES[0], 19)
    assert evaluate_rows(CONFIG, PARAMS, [batch]).kl is None
    assert evaluate_rows(CONFIG, PARAMS, [batch], teacher=(CONFIG, PARAMS)).kl == 0


def test_batches_weigh_by_their_tokens() -> None:
    batches = [_rows(np.random.default_rng(i), rows, 19)[0] for i, rows in enumerate(BATCHES)]
    whole = evaluate_rows(CONFIG, PARAMS, batches)
    apart = [evaluate_rows(CONFIG, PARAMS, [batch]) for batch in batches]
    assert apart[0].tokens != apart[1].tokens
    mean = sum(e.nll * e.tokens for e in apart) / sum(e.tokens for e in apart)
    assert whole.nll == pytest.approx(mean, rel=1e-7)


def test_same_on_a_mesh() -> None:
    batch, _ = _rows(np.random.default_rng(5), [(19,), (7, 9), (2, 3), (4, 15)], 19)
    constrain = Constrain(make_mesh(MeshConfig(data=4, fsdp=1, tensor=2)), ("kv_heads", "mlp", "vocab"))
    mesh = constrain.mesh
    split = jax.NamedSharding(mesh, jax.P("data"))
    params = jax.device_put(PARAMS, jax.NamedSharding(mesh, jax.P()))
    v = params["layers"]["attention"]["v"]
    v["kernel"] = jax.device_put(v["kernel"], jax.NamedSharding(mesh, jax.P(None, None, None, "tensor")))
    placed = {name: jax.device_put(value, split) for name, value in batch.items()}
    found = evaluate_rows(CONFIG, params, [placed], constrain=constrain)
    assert found.nll == pytest.approx(evaluate_rows(CONFIG, PARAMS, [batch]).nll, rel=1e-6)


def test_rows_with_nothing_to_score_are_refused() -> None:
    batch, _ = _rows(np.random.default_rng(0), [(1, 1), ()], 19)
    for batches in ([], [batch]):
        with pytest.raises(UserError, match="no token to score"):
            evaluate_rows(CONFIG, PARAMS, batches)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(length=st.integers(2, 40), window=st.integers(1, 17), data=st.data())
def test_windows_score_each_token_once_with_context(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    stream = np.arange(100, 100 + length, dtype=np.int32)
    windows = list(rolling_windows(stream, window, stride))
    scored = np.concatenate([w["labels"][w["weights"] == 1] for w in windows])
    np.testing.assert_array_equal(scored, stream[1:])
    assert len({w["tokens"].shape for w in windows}) == 1
    for w in windows:
        np.testing.assert_array_equal(w["labels"], w["tokens"] + 1)
    for earlier, later in pairwise(windows):
        context = int(np.argmax(later["weights"])) + 1
        assert context >= window - stride + 1
        assert later["tokens"][0] > earlier["tokens"][0]


def test_windows_are_those_of_lm_eval() -> None:
    """The example in lm-eval's own test: max_seq_len 10, context_len 5, prefix token first, 34 tokens."""
    tokens = np.asarray([-100, *range(34)], np.int32)
    windows = [(w["tokens"].tolist(), w["labels"][w["weights"] == 1].tolist()) for w in rolling_windows(tokens, 10, 6)]
    assert windows[0] == ([-100, *range(9)], list(range(10)))
    assert windows[1] == (list(range(5, 15)), list(range(10, 16)))
    assert windows[-1] == (list(range(23, 33)), [*range(28, 34)])
    assert [target for _, targets in windows for target in targets] == list(range(34))


@pytest.mark.parametrize(("length", "window", "stride"), [(23, 7, 3), (24, 8, 8), (5, 11, 4), (2, 1, 1), (13, 12, 1)])
def test_rolling_perplexity_equals_plain_computation(length: int, window: int, stride: int) -> None:
    stream = np.random.default_rng(length).integers(0, VOCAB, length)
    nlls, end = [], 1
    while end < length:  # `end` is the first token not yet scored
        stop = min(end + (window if end == 1 else stride), length)
        start = max(0, stop - 1 - window)
        log_p = _log_p(_student_log_p, stream[start : stop - 1])
        nlls += [-log_p[i - 1 - start, stream[i]] for i in range(end, stop)]
        end = stop
    found = rolling_perplexity(CONFIG, PARAMS, stream, window, stride, batch=3)
    assert found.tokens == len(nlls) == length - 1
    assert found.nll == pytest.approx(np.mean(nlls), rel=1e-5)
    assert found.kl is None


def test_windows_that_do_not_fit_are_refused() -> None:
    stream = np.arange(9)
    with pytest.raises(UserError, match="positions"):
        rolling_perplexity(CONFIG, PARAMS, stream, 65, 4, 1)
    with pytest.raises(UserError, match="stride"):
        rolling_perplexity(CONFIG, PARAMS, stream, 4, 5, 1)
    with pytest.raises(UserError, match="at least two"):
        rolling_perplexity(CONFIG, PARAMS, stream[:1], 4, 2, 1)


def test_only_targets_are_scored() -> None:
    rng = np.random.default_rng(3)
    batch, documents = _rows(rng, [(7, 1, 9)], 19)
    teacher = (TEACHER, TEACHER_PARAMS)
    targets = rng.random((1, 19)) < 0.4
    following = np.concatenate([targets[0, 1:7], targets[0, 9:17]])  # of each that follows another in its document
    found = evaluate_rows(CONFIG, PARAMS, [batch | {"targets": targets}], teacher=teacher)
    assert found.tokens == following.sum() and 0 < found.tokens < 14
    assert found.nll == pytest.approx(_nlls(documents)[following].mean(), rel=1e-5)
    assert found.kl == pytest.approx(np.array(list(_kls(documents)))[following].mean(), rel=1e-5)
    with pytest.raises(UserError, match="no token to score"):
        evaluate_rows(CONFIG, PARAMS, [batch | {"targets": np.zeros((1, 19), bool)}])


def test_windows_score_the_targets_of_a_stream() -> None:
    stream, targets = np.arange(100, 123, dtype=np.int32), np.random.default_rng(0).random(23) < 0.5
    windows = list(rolling_windows(stream, 7, 3, targets))
    scored = np.concatenate([w["labels"][w["weights"] == 1] for w in windows])
    np.testing.assert_array_equal(scored, stream[1:][targets[1:]])
    found = rolling_perplexity(CONFIG, PARAMS, stream % VOCAB, 7, 3, 3, targets=targets)
    assert found.tokens == targets[1:].sum()
