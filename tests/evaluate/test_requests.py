"""Log-likelihoods of continuations: boundaries as lm-evaluation-harness has them, figures against torch, packing."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from data.conftest import build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from models.random_params import random_params

from chopjax.data.tokenize import Tokenizer, load_tokenizer
from chopjax.errors import UserError
from chopjax.evaluate.requests import NOBODY, Request, encode, log_likelihoods, pack
from chopjax.models.config import LayerKind, ModelConfig
from chopjax.sharding.mesh import Constrain, make_mesh, param_shardings
from chopjax.sharding.rules import MeshConfig

CONFIG = ModelConfig(
    layers=2, embed=16, kv_heads=4, q_per_kv=1, head_dim=4, mlp=12, vocab=300, positions=64,
    kinds=(LayerKind(), LayerKind(window=5)), kind_of_layer=(0, 1),
)  # fmt: skip
PAIRS = [
    ("The heron stood in the", " water"),
    ("The heron stood in the ", "water"),
    ("The heron stood in the \n", " shallow water and waited for the fish"),
    ("Wasser", "fall"),
    ("", " compiler"),
    ("def add(a, b):", "\n    return a + b"),
    ("  ", "fish"),
    ("Water runs down the hill, and the hill wears away under the water. A compiler reads a program and", " writes"),
]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "bos"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"), adds_bos=request.param)


def harness_ids(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """What lm-evaluation-harness 0.4 does, retold: `TemplateLM.loglikelihood` and `_encode_pair`."""
    prefix = tokenizer.bos_token_id
    if context == "":
        return [prefix], tokenizer.encode(continuation, add_special_tokens=False)
    spaces = len(context) - len(context.rstrip())
    if spaces > 0:
        continuation = context[-spaces:] + continuation
        context = context[:-spaces]
    whole, before = tokenizer.encode(context + continuation), tokenizer.encode(context)
    return before, whole[len(before) :]


def test_boundaries_equal_the_harness(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for pair, request in zip(PAIRS, encode(load_tokenizer(folder), PAIRS, 200), strict=True):
        context, continuation = harness_ids(theirs, *pair)
        # A context of nothing but white space leaves theirs without any context, which it refuses; ours begins anew.
        assert request.ids == (context or [0]) + continuation, pair
        assert request.scored == len(continuation), pair


def test_long_context_loses_its_beginning_and_long_continuation_is_refused(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    (whole,), (cut,) = encode(tokenizer, PAIRS[-1:], 200), encode(tokenizer, PAIRS[-1:], 9)
    assert cut == (whole.ids[-10:], whole.scored)
    with pytest.raises(UserError, match=r"choice ' shallow water.* has \d+ tokens; a row has 9"):
        encode(tokenizer, [("The heron stood in the", " shallow water and waited for the fish to come")], 9)
    with pytest.raises(UserError, match="has no token of its own"):
        encode(tokenizer, [("Water", "")], 9)


def test_empty_context_begins_with_bos_or_eos(tmp_path: Path) -> None:
    names = {"only_eos": {"bos_token": None, "eos_token": "</s>"}, "neither": {"bos_token": None, "eos_token": None}}
    only_eos, neither = (
        load_tokenizer(build_tokenizer(tmp_path / name, settings=settings)) for name, settings in names.items()
    )
    (request,) = encode(only_eos, [("", "fish")], 9)
    assert request.ids[0] == only_eos.eos == 1 and request.scored == len(request.ids) - 1
    with pytest.raises(UserError, match="names no bos_token or eos_token"):
        encode(neither, [("", "fish")], 9)
    # A text that begins with BOS itself gets no second one, and what begins it is not scored.
    (spelled,) = encode(load_tokenizer(build_tokenizer(tmp_path / "bos", adds_bos=True)), [("", "<s>fish")], 9)
    assert spelled.ids[0] == 0 and 0 not in spelled.ids[1:] and spelled.scored == len(spelled.ids) - 1


@given(sizes=st.lists(st.integers(2, 10), max_size=20), batch=st.integers(1, 4), data=st.data())
@settings(max_examples=50, deadline=None)
def test_packing_loses_nothing(sizes: list[int], batch: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(0)
    requests = [Request(rng.integers(0, 99, n).tolist(), data.draw(st.integers(1, n - 1))) for n in sizes]
    batches = pack(requests, batch, 9)
    rows = [{name: array[row] for name, array in b.items()} for b in batches for row in range(batch)]
    found = []
    for row in rows:
        for segment in range(1, row["segment_ids"].max() + 1):
            inside = row["segment_ids"] == segment
            assert row["positions"][inside].tolist() == list(range(inside.sum()))
            ids = [*row["tokens"][inside].tolist(), int(row["labels"][inside][-1])]
            assert ids[1:] == row["labels"][inside].tolist()
            named = row["request"][inside]
            assert set(named[named != NOBODY]) == {len(found)} and (named[-1:] != NOBODY).all()
            found.append(Request(ids, int((named != NOBODY).sum())))
        assert (row["request"][row["segment_ids"] == 0] == NOBODY).all()
    assert found == requests
    assert all(b["tokens"].shape == (batch, 9) for b in batches)


def reference(logits: np.ndarray, request: Request) -> float:
    """float64 log-likelihood of the last `scored` ids, from the logits at each but the last."""
    logits = logits.astype(np.float64)
    log_p = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    log_p -= logits.max(-1, keepdims=True)
    at = np.arange(len(request.ids) - 1 - request.scored, len(request.ids) - 1)
    return float(log_p[at, np.asarray(request.ids)[at + 1]].sum())


def test_equals_torch_one_request_at_a_time(folder: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from hf.families_under_test import save_random, small_hf_config

    from chopjax.hf.checkpoint import open_checkpoint
    from chopjax.hf.reading import load_params

    model = save_random(tmp_path, small_hf_config("llama", vocab=300, positions=64), seed=1)
    checkpoint = open_checkpoint(tmp_path)
    requests = encode(load_tokenizer(folder), PAIRS, 48)
    found = log_likelihoods(checkpoint.config, load_params(checkpoint), pack(requests, 2, 48), len(requests))
    with torch.no_grad():
        logits = [model(torch.tensor([request.ids[:-1]])).logits[0].numpy() for request in requests]
    expected = [reference(*pair) for pair in zip(logits, requests, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.ptp(expected) > 1


def test_same_alone_packed_and_on_meshes(folder: Path) -> None:
    params = random_params(CONFIG)
    requests = encode(load_tokenizer(folder), PAIRS, 48)
    packed = pack(requests, 8, 48)
    expected = log_likelihoods(CONFIG, params, packed, len(requests))
    alone = np.concatenate([log_likelihoods(CONFIG, params, pack([r], 8, 48), 1) for r in requests])
    np.testing.assert_allclose(alone, expected, rtol=1e-5)
    for shape in (MeshConfig(fsdp=8), MeshConfig(fsdp=2, tensor=4)):
        mesh = make_mesh(shape)
        constrain = Constrain(mesh)
        placed = jax.device_put(params, param_shardings(CONFIG, mesh))
        options: dict[str, Any] = {"constrain": constrain}
        found = log_likelihoods(CONFIG, placed, packed, len(requests), **options)
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=str(mesh.shape))


def test_tokens_of_another_model_are_refused(folder: Path) -> None:
    tokenizer: Tokenizer = load_tokenizer(folder)
    small = ModelConfig(layers=1, embed=8, kv_heads=1, q_per_kv=1, head_dim=4, mlp=4, vocab=50, positions=64)
    with pytest.raises(UserError, match=r"gives token \d+, but the model has 50"):
        log_likelihoods(small, random_params(small), pack(encode(tokenizer, PAIRS, 48), 2, 48), len(PAIRS))
