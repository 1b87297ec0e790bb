"""Properties of the decoder that need no reference: packing, cache, taps, remat, dtypes."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.random_params import random_params

from chopjax.axes import flatten
from chopjax.models.config import LayerKind, ModelConfig, Rope
from chopjax.models.decoder import (
    Cache,
    Output,
    Params,
    abstract_params,
    bind,
    forward,
    init_cache,
    init_params,
    logits,
)
from chopjax.models.parameters import shapes

LLAMA = ModelConfig(
    layers=3,
    embed=15,
    kv_heads=3,
    q_per_kv=3,
    head_dim=6,
    mlp=11,
    vocab=37,
    positions=64,
    tied=True,
    rope=Rope("llama3", factor=4.0, original_positions=16, low_freq_factor=1.0, high_freq_factor=4.0),
    initializer_range=0.3,
)
QWEN = dataclasses.replace(
    LLAMA,
    kv_heads=2,
    qkv_bias=True,
    qk_norm=True,
    tied=False,
    rope=Rope(),
    kinds=(LayerKind(), LayerKind(window=4)),
    kind_of_layer=(1, 0, 1),
)
NEMOTRON = dataclasses.replace(
    LLAMA,
    kv_heads=1,
    norm="layer_1p",
    activation="relu2",
    gated=False,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    rope=Rope(rotary_fraction=0.67),
)
CONFIGS = pytest.mark.parametrize("config", [LLAMA, QWEN, NEMOTRON], ids=["llama", "qwen", "nemotron"])


@functools.cache
def _params(config: ModelConfig) -> Params:
    return random_params(config, scale=0.3)


run = jax.jit(forward, static_argnames=("config", "tap", "remat"))


def _tokens(rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, LLAMA.vocab, (rows, length)).astype(np.int32)


def _close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@CONFIGS
def test_fresh_params_are_what_is_declared(config: ModelConfig) -> None:
    params = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    assert {path: x.shape for path, x in flatten(params).items()} == shapes(config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract_params(config)
    )
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("config", [LLAMA, NEMOTRON], ids=["llama", "nemotron"])
def test_fresh_params_start_as_usual(config: ModelConfig) -> None:
    @jax.jit
    def fresh(key: jax.Array) -> tuple[Params, jax.Array]:
        params = init_params(config, key)
        return params["layers"]["mlp_norm"], params["layers"]["mlp"]["up"]["kernel"]

    norm, up = fresh(jax.random.key(0))
    # Nemotron's norm multiplies by 1 + scale.
    assert set(np.unique(norm["scale"])) == {0.0 if config.norm == "layer_1p" else 1.0}
    assert not np.any(norm.get("bias", 0))
    assert np.std(up) == pytest.approx(config.initializer_range, rel=0.15)
    assert np.unique(up).size > 0.9 * up.size


def test_params_of_another_config_are_refused() -> None:
    with pytest.raises(ValueError, match="unembed/kernel"):
        bind(dataclasses.replace(LLAMA, tied=False), _params(LLAMA))


@CONFIGS
def test_packed_rows_equal_separate_sequences(config: ModelConfig) -> None:
    lengths = (7, 1, 8)
    tokens = _tokens(2, 19)
    segments = np.repeat([1, 2, 3, 0], [*lengths, 3]).astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in (*lengths, 3)]).astype(np.int32)
    places = (np.stack([x, x]) for x in (positions, segments))
    packed = run(config, _params(config), tokens, *places).hidden
    assert np.isfinite(np.asarray(packed)).all()
    start = 0
    for n in lengths:
        # What follows a sequence does not change it, and spares a compilation for each length.
        alone = run(config, _params(config), np.roll(tokens, -start, axis=1)).hidden
        _close(packed[:, start : start + n], alone[:, :n])
        start += n


@CONFIGS
def test_cache_equals_no_cache(config: ModelConfig) -> None:
    splits = (5, 1, 1, 1, 5)
    tokens = _tokens(2, sum(splits))
    whole = run(config, _params(config), tokens).hidden
    cache: Cache | None = init_cache(config, 2, sum(splits) + 3, jnp.float32)
    parts, start = [], 0
    for n in splits:
        output: Output = run(config, _params(config), tokens[:, start : start + n], cache=cache)
        cache, start = output.cache, start + n
        parts.append(output.hidden)
    _close(np.concatenate(parts, axis=1), whole)


def _tap_all(activations: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return dict(activations)


@CONFIGS
def test_taps_hold_each_block(config: ModelConfig) -> None:
    tokens = _tokens(2, 9)
    output = run(config, _params(config), tokens, tap=_tap_all)
    residual = (config.layers, 2, 9, config.embed)
    assert {name: x.shape for name, x in output.taps.items()} == {
        "block_input": residual,
        "attention_norm": residual,
        "q": (config.layers, 2, 9, config.kv_heads, config.q_per_kv, config.head_dim),
        "k": (config.layers, 2, 9, config.kv_heads, config.head_dim),
        "v": (config.layers, 2, 9, config.kv_heads, config.head_dim),
        "heads": (config.layers, 2, 9, config.kv_heads, config.q_per_kv, config.head_dim),
        "mlp_norm": residual,
        "mlp_hidden": (config.layers, 2, 9, config.mlp),
        "block_output": residual,
    }
    np.testing.assert_array_equal(output.taps["block_input"][0], output.embedded)
    np.testing.assert_array_equal(output.taps["block_output"][:-1], output.taps["block_input"][1:])
    np.testing.assert_array_equal(output.embedded, _params(config)["embed"]["table"][tokens])
    plain = run(config, _params(config), tokens)
    assert plain.taps is None and plain.cache is None
    _close(output.hidden, plain.hidden, 1e-6)


def test_taps_rebuild_the_block() -> None:
    """Residual sums from the taps themselves, so that each name holds what it says."""
    output = run(LLAMA, _params(LLAMA), _tokens(2, 9), tap=_tap_all)
    taps, layers = output.taps, _params(LLAMA)["layers"]
    attended = taps["block_input"] + np.einsum("lbtkgh,lkghe->lbte", taps["heads"], layers["attention"]["o"]["kernel"])
    down = np.einsum("lbtm,lme->lbte", taps["mlp_hidden"], layers["mlp"]["down"]["kernel"])
    _close(attended + down, taps["block_output"])
    rms = np.sqrt(np.mean(np.square(attended), axis=-1, keepdims=True) + LLAMA.norm_eps)
    _close(attended / rms * layers["mlp_norm"]["scale"][:, None, None], taps["mlp_norm"])


def test_remat_changes_no_gradient() -> None:
    config = QWEN
    tokens = jnp.asarray(_tokens(2, 9))

    def loss(params: Params, remat: str) -> jax.Array:
        hidden = forward(config, params, tokens, remat=remat).hidden
        return jnp.mean(jnp.square(logits(config, params, hidden)))

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    expected = flatten(gradient(_params(config), "none"))
    assert all(np.abs(np.asarray(x)).max() > 0 for x in expected.values())
    for remat in ("full", "dots", "offload", "offload_dots"):
        for path, found in flatten(gradient(_params(config), remat)).items():
            _close(found, expected[path])


@CONFIGS
def test_bfloat16_is_float32_roughly(config: ModelConfig) -> None:
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), _params(config))
    tokens = _tokens(2, 9)
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    output = run(config, half, tokens, tap=_tap_all)
    assert {x.dtype for x in jax.tree.leaves(output)} == {jnp.dtype("bfloat16")}
    found = logits(config, half, output.hidden)
    assert found.dtype == jnp.float32
    # bfloat16 keeps 8 bits: 0.4 % a rounding, and some tens of roundings one after another.
    _close(found, logits(config, rounded, run(config, rounded, tokens).hidden), 0.05)


@CONFIGS
def test_future_tokens_and_other_rows_do_not_matter(config: ModelConfig) -> None:
    tokens, other = _tokens(2, 9), _tokens(2, 9, seed=1)
    other[0, :5] = tokens[0, :5]
    found, expected = (run(config, _params(config), t).hidden for t in (other, tokens))
    _close(found[0, :5], expected[0, :5], 1e-6)
    assert np.abs(np.asarray(found - expected))[0, 5].max() > 1e-2


def test_window_hides_what_is_farther_back() -> None:
    config = dataclasses.replace(QWEN, kinds=(LayerKind(window=4),), kind_of_layer=(0,), layers=1)
    tokens = _tokens(1, 9)
    other = tokens.copy()
    other[0, 2] = (other[0, 2] + 1) % LLAMA.vocab
    params = _params(config)
    change = np.abs(np.asarray(run(config, params, other).hidden - run(config, params, tokens).hidden))[0].max(-1)
    assert (change > 1e-3).tolist() == [i in (2, 3, 4, 5) for i in range(9)]


def test_dots_recompute_no_kernel_product() -> None:
    config = dataclasses.replace(LLAMA, embed=45, mlp=77)
    tokens = jax.ShapeDtypeStruct((2, 7), jnp.int32)

    def flops(remat: str) -> float:
        def loss(params: Params, tokens: jax.Array) -> jax.Array:
            return jnp.sum(forward(config, params, tokens, remat=remat).hidden)

        return jax.jit(jax.grad(loss)).lower(abstract_params(config), tokens).compile().cost_analysis()["flops"]

    assert flops("none") < flops("dots") < 0.9 * flops("full")
