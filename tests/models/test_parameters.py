"""Counts against published models: parameters, FLOPs of a token, bytes of a KV cache, and shapes against a config."""

import dataclasses

import pytest

from chopjax.models.config import LayerKind, ModelConfig
from chopjax.models.parameters import config_mismatch, count, declare, flops_per_token, kv_cache_bytes, shapes

QWEN3_8B = ModelConfig(
    layers=36, embed=4096, kv_heads=8, q_per_kv=4, head_dim=128, mlp=12_288, vocab=151_936, positions=40_960,
    qk_norm=True,
)  # fmt: skip
LLAMA31_8B = ModelConfig(
    layers=32, embed=4096, kv_heads=8, q_per_kv=4, head_dim=128, mlp=14_336, vocab=128_256, positions=131_072
)
LLAMA2_7B = ModelConfig(
    layers=32, embed=4096, kv_heads=32, q_per_kv=1, head_dim=128, mlp=11_008, vocab=32_000, positions=4096
)
MISTRAL_NEMO_12B = ModelConfig(
    layers=40, embed=5120, kv_heads=8, q_per_kv=4, head_dim=128, mlp=14_336, vocab=131_072, positions=131_072
)
NEMOTRON4_15B = ModelConfig(
    layers=32, embed=6144, kv_heads=8, q_per_kv=6, head_dim=128, mlp=24_576, vocab=256_000, positions=4096,
    norm="layer_1p", activation="relu2", gated=False,
)  # fmt: skip

# Exact sizes of published models, and of chops of them that were published.
EXACT = (
    ("Qwen3-8B", QWEN3_8B, {}, 8_190_735_360),
    ("Qwen3-8B, 32 layers", QWEN3_8B, {"layers": 32}, 7_418_949_632),
    ("Qwen3-8B, 28 layers", QWEN3_8B, {"layers": 28}, 6_647_163_904),
    ("Qwen3-8B, 22 layers", QWEN3_8B, {"layers": 22}, 5_489_485_312),
    ("Qwen3-8B, 32 layers, 3840", QWEN3_8B, {"layers": 32, "embed": 3840}, 6_955_265_792),
    ("Qwen3-8B, 30/3584/11776", QWEN3_8B, {"layers": 30, "embed": 3584, "mlp": 11_776}, 5_988_774_912),
    ("Qwen3-8B, 36/3584/9216", QWEN3_8B, {"embed": 3584, "mlp": 9216}, 5_977_809_408),
    ("Llama-3.1-8B", LLAMA31_8B, {}, 8_030_261_248),
    ("Llama-3.1-Minitron-4B-Width", LLAMA31_8B, {"embed": 3072, "mlp": 9216}, 4_512_746_496),
    ("Llama-3.1-Minitron-4B-Depth", LLAMA31_8B, {"layers": 16}, 4_540_469_248),
    ("Llama-2-7B", LLAMA2_7B, {}, 6_738_415_616),
    ("Llama-2-7B, 23 layers", LLAMA2_7B, {"layers": 23}, 4_916_965_376),
    ("LLaMA-1-7B, 26 layers", LLAMA2_7B, {"layers": 26}, 5_524_115_456),
    ("Sheared-LLaMA-1.3B", LLAMA2_7B, {"layers": 24, "embed": 2048, "kv_heads": 16, "mlp": 5504}, 1_345_423_360),
    ("Sheared-LLaMA-2.7B", LLAMA2_7B, {"embed": 2560, "kv_heads": 20, "mlp": 6912}, 2_701_560_320),
    ("Mistral-NeMo-12B", MISTRAL_NEMO_12B, {}, 12_247_782_400),
    ("MN-Minitron-8B", MISTRAL_NEMO_12B, {"embed": 4096, "mlp": 11_520}, 8_414_105_600),
)

# Total and without both tables, in billions: Minitron (arXiv 2407.14679) table 10 and (arXiv 2408.11796) table 3.
ROUNDED = (
    ("Nemotron-4 15B", NEMOTRON4_15B, {}, "15.63", "12.48"),
    (
        "Nemotron-3 8B",
        NEMOTRON4_15B,
        {"embed": 4096, "kv_heads": 32, "q_per_kv": 1, "mlp": 16_384},
        "8.54",
        "6.44",
    ),
    ("Minitron 8B", NEMOTRON4_15B, {"embed": 4096, "mlp": 16_384}, "8.27", "6.17"),
    ("Minitron 4B", NEMOTRON4_15B, {"embed": 3072, "q_per_kv": 3, "mlp": 9216}, "4.19", "2.62"),
    ("4B width", LLAMA31_8B, {"embed": 3072, "mlp": 9216}, "4.51", "3.72"),
    ("4B depth", LLAMA31_8B, {"layers": 16}, "4.54", "3.49"),
    ("MN-Minitron-8B", MISTRAL_NEMO_12B, {"embed": 4096, "mlp": 11_520}, "8.41", "7.34"),
    ("Mistral-NeMo-12B", MISTRAL_NEMO_12B, {}, "12.25", "10.91"),
    ("Llama-3.1-8B", LLAMA31_8B, {}, "8.03", "6.98"),
)

TINY = ModelConfig(layers=3, embed=10, kv_heads=2, q_per_kv=3, head_dim=4, mlp=7, vocab=11, positions=32)


def changed(config: ModelConfig, sizes: dict[str, int]) -> ModelConfig:
    return dataclasses.replace(config, **sizes, kind_of_layer=())  # type: ignore[arg-type]


@pytest.mark.parametrize(("config", "sizes", "parameters"), [row[1:] for row in EXACT], ids=[row[0] for row in EXACT])
def test_published_sizes_exactly(config: ModelConfig, sizes: dict[str, int], parameters: int) -> None:
    assert count(changed(config, sizes)) == parameters


@pytest.mark.parametrize(
    ("config", "sizes", "total", "inner"), [row[1:] for row in ROUNDED], ids=[row[0] for row in ROUNDED]
)
def test_published_sizes_to_the_printed_digits(
    config: ModelConfig, sizes: dict[str, int], total: str, inner: str
) -> None:
    config = changed(config, sizes)
    assert f"{count(config) / 1e9:.2f}" == total
    assert f"{count(config, embeddings=False) / 1e9:.2f}" == inner


def test_a_tied_table_counts_once() -> None:
    tied = dataclasses.replace(LLAMA31_8B, tied=True)
    assert count(LLAMA31_8B) - count(tied) == 128_256 * 4096
    assert count(LLAMA31_8B, embeddings=False) == count(tied, embeddings=False)


def test_every_option_adds_its_own_leaves() -> None:
    heads = TINY.q_heads * TINY.head_dim
    keys = TINY.kv_heads * TINY.head_dim
    expected = {
        "qkv_bias": TINY.layers * (heads + 2 * keys),
        "o_bias": TINY.layers * TINY.embed,
        "mlp_bias": TINY.layers * (2 * TINY.mlp + TINY.embed),
        "qk_norm": TINY.layers * 2 * TINY.head_dim,
    }
    added = {option: count(dataclasses.replace(TINY, **{option: True})) - count(TINY) for option in expected}  # type: ignore[arg-type]
    assert added == expected
    norms = (2 * TINY.layers + 1) * TINY.embed
    assert count(dataclasses.replace(TINY, norm="layer")) - count(TINY) == norms
    assert count(TINY) - count(dataclasses.replace(TINY, gated=False)) == TINY.layers * TINY.embed * TINY.mlp


def test_flops_by_hand() -> None:
    # Two for each weight of a product: q and o 10 x 24, k and v 10 x 8, gate, up and down 10 x 7; the head 10 x 11.
    products = 2 * (3 * (2 * 240 + 2 * 80 + 3 * 70) + 110)
    # Scores and their sum over values: 2 · 2 · 6 heads · 4 channels for each of the 1, 2, ... 5 keys that 5 tokens see.
    assert flops_per_token(TINY, 5) == products + 3 * 96 * (1 + 2 + 3 + 4 + 5) / 5
    tied = dataclasses.replace(TINY, tied=True)
    assert flops_per_token(tied, 5) == flops_per_token(TINY, 5)  # a tied table is still multiplied by


def test_flops_of_a_window() -> None:
    windowed = dataclasses.replace(TINY, kinds=(LayerKind(), LayerKind(2)), kind_of_layer=(0, 1, 1))
    seen = flops_per_token(TINY, 5) - flops_per_token(windowed, 5)
    assert seen == pytest.approx(2 * 96 * ((1 + 2 + 3 + 4 + 5) - (1 + 2 + 2 + 2 + 2)) / 5)
    wide = dataclasses.replace(TINY, kinds=(LayerKind(9),))
    assert flops_per_token(wide, 5) == flops_per_token(TINY, 5)


def test_flops_of_a_real_model() -> None:
    # 2 · (6.98e9 + 0.525e9) without attention; norms are no products.
    norms = (2 * 32 + 1) * 4096
    products = 2 * (8_030_261_248 - norms - 128_256 * 4096)
    assert flops_per_token(LLAMA31_8B, 1) == products + 32 * 4 * 32 * 128


def test_kv_cache_bytes() -> None:
    # Llama-3.1-8B at 128k tokens in bfloat16: 2 · 32 layers · 8 heads · 128 channels · 2 bytes = 128 KiB a token.
    assert kv_cache_bytes(LLAMA31_8B, 1) == 131_072
    assert kv_cache_bytes(LLAMA31_8B, 131_072) == 16 * 2**30
    assert kv_cache_bytes(changed(LLAMA31_8B, {"layers": 16}), 131_072) == 8 * 2**30
    assert kv_cache_bytes(LLAMA31_8B, 100, bytes_per_value=4) == 4 * kv_cache_bytes(LLAMA31_8B, 50)
    windowed = dataclasses.replace(TINY, kinds=(LayerKind(), LayerKind(8)), kind_of_layer=(0, 1, 1))
    assert kv_cache_bytes(windowed, 20) == 2 * (20 + 8 + 8) * 2 * 4 * 2
    assert kv_cache_bytes(windowed, 5) == kv_cache_bytes(TINY, 5)


def test_shapes_against_a_config() -> None:
    found = shapes(TINY)
    assert found.keys() == declare(TINY).keys()
    assert found["layers/attention/o/kernel"] == (3, 2, 3, 4, 10)
    assert config_mismatch(TINY, found) is None
    assert config_mismatch(TINY, found | {"embed/table": (12, 10)}) == (
        "embed/table: config calls for (11, 10), found (12, 10)"
    )
    assert "more" in (config_mismatch(TINY, found | {"more": (1,)}) or "")
    del found["final_norm/scale"]
    assert config_mismatch(TINY, found) == "final_norm/scale: config calls for (10,), found None"
