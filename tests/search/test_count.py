"""Arrays of counts against the counts of single models."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search.sources import LLAMA31_8B, WINDOWED

from chopjax.axes import Role
from chopjax.models.config import LayerKind, ModelConfig
from chopjax.models.parameters import count, flops_per_token, kv_cache_bytes
from chopjax.search.config import CHOICES
from chopjax.search.count import figures, parameters
from chopjax.search.roofline import CHIPS

_size = st.integers(1, 300)


@st.composite
def sources(draw: st.DrawFn) -> ModelConfig:
    """Any config with one kind of layer."""
    flags = {name: draw(st.booleans()) for name in ("gated", "tied", "qkv_bias", "o_bias", "mlp_bias", "qk_norm")}
    sizes = {name: draw(_size) for name in ("embed", "kv_heads", "q_per_kv", "head_dim", "mlp", "vocab")}
    window = draw(st.none() | st.integers(1, 50))
    norm: Any = draw(st.sampled_from(["rms", "layer", "layer_1p"]))
    layers = draw(st.integers(1, 40))
    return ModelConfig(layers=layers, **sizes, positions=64, norm=norm, kinds=(LayerKind(window),), **flags)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(sources(), st.integers(0, 2**32 - 1), st.integers(1, 100), st.integers(1, 5))
def test_equal_to_the_counts_of_each_candidate(config: ModelConfig, seed: int, context: int, sequences: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = {axis: rng.integers(1, config.sizes[axis], 7, endpoint=True) for axis in CHOICES}
    found = figures(config, sizes, context, sequences)
    for place in range(7):
        chosen = {axis: int(array[place]) for axis, array in sizes.items()}
        student = dataclasses.replace(config, **chosen, kind_of_layer=())  # type: ignore[arg-type]
        cache = sequences * kv_cache_bytes(student, context)
        assert {name: array[place].item() for name, array in found.items()} == {
            "params": count(student),
            "non_embedding_params": count(student, embeddings=False),
            "flops": flops_per_token(student, context),
            "kv_cache": cache,
            "bytes": 2 * count(student) + cache,
        }


def test_mixed_windows_are_counted_as_if_the_widest_stay() -> None:
    context = 21
    found = figures(WINDOWED, {"layers": np.arange(1, 6)}, context)
    for layers in range(1, 6):
        students = [
            dataclasses.replace(WINDOWED, layers=layers, kind_of_layer=kinds)
            for kinds in itertools.combinations(WINDOWED.kind_of_layer, layers)
        ]
        assert found["kv_cache"][layers - 1] == max(kv_cache_bytes(student, context) for student in students)
        assert found["flops"][layers - 1] == max(flops_per_token(student, context) for student in students)
    assert found["kv_cache"][-1] == kv_cache_bytes(WINDOWED, context)
    assert found["flops"][-1] == flops_per_token(WINDOWED, context)


def test_by_role_of_a_whole_model() -> None:
    found = parameters(LLAMA31_8B, {"layers": np.array([32])})
    assert found[Role.TABLE] == [2 * 128_256 * 4096]
    assert found[Role.NORM] == [65 * 4096]
    assert found[Role.BIAS] == [0]
    assert sum(found.values()) == [8_030_261_248]


def test_large_counts_do_not_overflow() -> None:
    sizes = {axis: np.array([2**15 if axis in ("embed", "mlp") else 128], np.int64) for axis in CHOICES}
    config = dataclasses.replace(LLAMA31_8B, layers=128, embed=2**15, mlp=2**15, kv_heads=128, kind_of_layer=())
    found = figures(config, sizes, context=2**20, sequences=1000)
    student = dataclasses.replace(config, q_per_kv=128)
    assert found["params"] == [count(student)]
    assert found["kv_cache"] == [1000 * kv_cache_bytes(student, 2**20)]


def test_latency_of_a_real_model_by_hand() -> None:
    # Llama-3.1-8B on one H100 at 8192 tokens: weights without the embedding table, and 128 KiB of cache a token.
    read = 2 * (8_030_261_248 - 128_256 * 4096)
    whole = {axis: np.array([LLAMA31_8B.sizes[axis]]) for axis in CHOICES}
    found = figures(LLAMA31_8B, whole, 8192, 4, CHIPS["h100"])
    assert found["latency"] == pytest.approx((read + 4 * 2**30) / 3350e9 * 1e3, rel=1e-12)
    # Many short sequences are bound by arithmetic: here two for each weight, and 4 · 4096 for each of 32 · 2 keys.
    busy = figures(LLAMA31_8B, whole, 2, 4096, CHIPS["h100"], chips=2)
    products = 2 * (8_030_261_248 - 65 * 4096 - 128_256 * 4096)
    assert busy["latency"] == pytest.approx(4096 * (products + 4 * 4096 * 64) / (2 * 989e12) * 1e3, rel=1e-12)
    # A prompt: all products but the logits for each token, the logits once, and each token's causal keys.
    logits = 2 * 128_256 * 4096
    keys = 4 * 4096 * 32 * math.comb(8193, 2)
    flops = 4 * (8192 * (products - logits) + logits + keys)
    assert found["prefill"] == pytest.approx(flops / 989e12 * 1e3, rel=1e-12)


def test_a_tied_table_is_read_once_a_step() -> None:
    whole = {"layers": np.array([32])}
    tied = figures(dataclasses.replace(LLAMA31_8B, tied=True), whole, 64, chip=CHIPS["v5e"])
    untied = figures(LLAMA31_8B, whole, 64, chip=CHIPS["v5e"])
    assert tied["latency"] == untied["latency"]
    assert tied["bytes"] < untied["bytes"]
