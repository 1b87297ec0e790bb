"""config.json both ways, for published configs and for drawn ones; what stock classes cannot hold."""

import dataclasses
import json
from typing import Any

import pytest
from hf.plain_checkpoints import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.errors import UserError
from chopjax.hf.families import FAMILIES, Family, family_of, target_family
from chopjax.models.config import LayerKind, ModelConfig, Rope
from chopjax.models.parameters import count, declare

# As published, in the style of transformers 4, cut to what a reader looks at.
LLAMA_31_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LLAMA_1_7B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-06,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}
MISTRAL_7B: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN_25_05B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MINITRON_4B: dict[str, Any] = {
    "architectures": ["NemotronForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "relu2",
    "hidden_size": 3072,
    "initializer_range": 0.0134,
    "intermediate_size": 9216,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "model_type": "nemotron",
    "norm_eps": 1e-05,
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "vocab_size": 256000,
}


def read(raw: dict[str, Any], **changes: Any) -> ModelConfig:
    changed = raw | changes
    return family_of(changed).config_from_hf(changed)


@pytest.mark.parametrize(
    ("raw", "parameters"),
    [
        (LLAMA_31_8B, 8_030_261_248),
        (LLAMA_1_7B, 6_738_415_616),
        (MISTRAL_7B, 7_241_732_096),
        (QWEN_25_05B, 494_032_768),
        (QWEN3_06B, 596_049_920),
        (MINITRON_4B, 4_190_509_056),
    ],
)
def test_published_configs_give_the_published_sizes(raw: dict[str, Any], parameters: int) -> None:
    config = read(raw)
    assert count(config) == parameters
    assert sum(_size(tensor.shape) for tensor in family_of(raw).tensors(config)) == parameters


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def test_published_details() -> None:
    llama = read(LLAMA_31_8B)
    assert (llama.head_dim, llama.kv_heads, llama.q_per_kv, llama.positions) == (128, 8, 4, 131072)
    assert llama.rope == Rope("llama3", 500_000.0, 1.0, 8.0, 8192, 1.0, 4.0)
    assert read(LLAMA_1_7B).q_per_kv == 1
    assert read(LLAMA_1_7B).positions == 2048
    assert read(MISTRAL_7B).kinds == (LayerKind(window=4096),)
    assert read({key: MISTRAL_7B[key] for key in MISTRAL_7B if key != "sliding_window"}).kinds[0].window == 4096
    assert read(MISTRAL_7B, sliding_window=None).kinds == (LayerKind(),)
    qwen = read(QWEN_25_05B)
    assert (qwen.qkv_bias, qwen.o_bias, qwen.tied, qwen.kinds) == (True, False, True, (LayerKind(),))
    assert (read(QWEN3_06B).qk_norm, read(QWEN3_06B).head_dim) == (True, 128)
    minitron = read(MINITRON_4B)
    assert (minitron.norm, minitron.gated, minitron.activation) == ("layer_1p", False, "relu2")
    assert minitron.rope.rotary_fraction == 0.5
    no_fraction = {key: MINITRON_4B[key] for key in MINITRON_4B if key != "partial_rotary_factor"}
    assert read(no_fraction).rope.rotary_fraction == 0.5
    v5 = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    assert read(no_fraction, rope_parameters=v5).rope.rotary_fraction == 0.25


def test_windows_by_layer() -> None:
    sliding = read(QWEN_25_05B, use_sliding_window=True, max_window_layers=20)
    assert [sliding.kinds[kind].window for kind in sliding.kind_of_layer] == [None] * 20 + [32768] * 4
    types = ["sliding_attention", "full_attention"] * 12
    mixed = read(QWEN_25_05B, use_sliding_window=True, layer_types=types)
    assert [sliding.kinds[kind].window is None for kind in mixed.kind_of_layer] == [False, True] * 12
    # Layers 0, 1, 3 and 22 remain.
    kept = dataclasses.replace(mixed, layers=4, kind_of_layer=tuple(mixed.kind_of_layer[n] for n in (0, 1, 3, 22)))
    raw = FAMILIES["qwen2"].config_to_hf(kept, QWEN_25_05B)
    full, slide = "full_attention", "sliding_attention"
    assert raw["layer_types"] == [slide, full, full, slide]
    assert (raw["num_hidden_layers"], raw["max_window_layers"], raw["sliding_window"]) == (4, 3, 32768)
    only_full = dataclasses.replace(mixed, layers=2, kind_of_layer=(mixed.kind_of_layer[1],) * 2)
    raw = FAMILIES["qwen2"].config_to_hf(only_full, QWEN_25_05B)
    assert (raw["use_sliding_window"], raw["sliding_window"], raw["layer_types"]) == (False, None, [full, full])


def test_original_positions_at_the_top_level_win() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    assert read(QWEN3_06B, rope_scaling=scaling).rope.original_positions == 8192
    top = read(QWEN3_06B, rope_scaling=scaling, original_max_position_embeddings=10240)
    assert top.rope.original_positions == 10240
    del scaling["original_max_position_embeddings"], scaling["factor"]
    bare = read(QWEN3_06B, rope_scaling=scaling).rope
    assert (bare.original_positions, bare.factor) == (40960, 1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "tanh"}, "hidden_act 'tanh'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, found 0"),
        ({"vocab_size": None}, "vocab_size must be a positive integer"),
        ({"num_hidden_layers": 300_000}, "num_hidden_layers is 300000, but no more than 10000 is supported"),
        ({"num_attention_heads": 2**31}, "num_attention_heads is 2147483648, but no more than 65536 is supported"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000, but no more than 16777216 is supported"),
        ({"max_position_embeddings": 10**18}, "max_position_embeddings is 1000000000000000000, but no more than"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false, found 'false'"),
        ({"attention_bias": 1}, "attention_bias must be true or false, found 1"),
        ({"hidden_act": "x" * 10_000}, "hidden_act '" + "x" * 119 + "; one of"),
        ({"num_key_value_heads": 5}, "num_key_value_heads 5 does not divide"),
        ({"num_attention_heads": 24}, "head_dim is missing"),
        ({"rope_scaling": {"type": "mrope"}}, "rope_type 'mrope'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "needs low_freq_factor, high_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear"}}, "needs factor"),
        ({"rope_scaling": None, "rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "differ by layer type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"layer_types": ["full_attention"]}, "layer_types must be 32"),
        ({"layer_types": ["sliding_attention"] * 32}, "no sliding_window in use"),
        ({"layer_types": ["linear_attention"] * 32}, "linear_attention"),
    ],
)
def test_refused_configs_name_the_field(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match="config.json") as caught:
        read(LLAMA_31_8B, **changes)
    assert words in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_every_rule_fits_its_declaration(family: Family) -> None:
    """With every option on, each declared leaf has a rule and each file axis a declared one."""
    config = full_option_config(family)
    paths = {tensor.path for tensor in family.tensors(config)}
    assert paths == declare(config).keys()
    names = [tensor.name for tensor in family.tensors(config)]
    assert len(names) == len(set(names))
    assert not any(family.is_useless(name) for name in names)


def full_option_config(family: Family) -> ModelConfig:
    return dataclasses.replace(
        SMALL,
        norm=family.norm,
        gated=family.gated,
        qk_norm=family.qk_norm,
        qkv_bias=family.attention_bias != "none",
        o_bias=family.attention_bias == "option",
        mlp_bias=family.mlp_bias,
    )


@st.composite
def members(draw: st.DrawFn, family: Family) -> ModelConfig:
    """Any config that `family` can hold."""
    layers = draw(st.integers(1, 5))
    window = draw(st.sampled_from([None, 7])) if family.windows != "none" else None
    kinds: tuple[LayerKind, ...] = (LayerKind(window),)
    of_layer = (0,) * layers
    if family.windows == "by_layer" and window is not None:
        slides = draw(st.lists(st.booleans(), min_size=layers, max_size=layers))
        if len(set(slides)) == 2:
            kinds, of_layer = (LayerKind(), LayerKind(window)), tuple(map(int, slides))
    bias = family.attention_bias == "option" and draw(st.booleans())
    fraction = draw(st.sampled_from([0.25, 0.5, 1.0])) if family.rotary_fraction is not None else 1.0
    q_per_kv, kv_heads, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 8 * draw(st.integers(1, 3))
    rope = dataclasses.replace(draw(ropes), rotary_fraction=fraction)
    if rope.kind == "longrope":
        pairs = int(head_dim * fraction) // 2
        rope = dataclasses.replace(rope, short_factor=(1.5,) * pairs, long_factor=(4.0,) * pairs)
    return ModelConfig(
        layers=layers,
        embed=draw(st.integers(1, 9)) * (q_per_kv * kv_heads if family.embed_divides else 1),
        kv_heads=kv_heads,
        q_per_kv=q_per_kv,
        head_dim=head_dim,
        mlp=draw(st.integers(1, 50)),
        vocab=draw(st.integers(1, 99)),
        positions=draw(st.integers(64, 128)),
        norm=family.norm,
        norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        activation=draw(st.sampled_from(["silu", "gelu", "gelu_tanh", "relu2"])),
        gated=family.gated,
        tied=draw(st.booleans()),
        qkv_bias=bias or family.attention_bias == "qkv",
        o_bias=bias,
        mlp_bias=family.mlp_bias and draw(st.booleans()),
        qk_norm=family.qk_norm,
        rope=rope,
        kinds=kinds,
        kind_of_layer=of_layer,
    )


_FACTORS = st.floats(1.0, 8.0)
ropes = st.one_of(
    st.builds(Rope, theta=st.floats(100.0, 1e6)),
    st.builds(Rope, kind=st.sampled_from(["linear", "dynamic"]), factor=_FACTORS),
    st.builds(
        Rope,
        kind=st.just("llama3"),
        factor=_FACTORS,
        original_positions=st.integers(8, 32),
        low_freq_factor=st.just(1.0),
        high_freq_factor=st.just(4.0),
    ),
    st.builds(
        Rope,
        kind=st.just("yarn"),
        factor=_FACTORS,
        original_positions=st.integers(8, 32),
        beta_fast=st.none() | st.just(16.0),
        beta_slow=st.none() | st.just(2.0),
        attention_factor=st.none() | st.just(1.25),
        mscale=st.none() | st.just(0.7),
        mscale_all_dim=st.none() | st.just(0.9),
        truncate=st.none() | st.booleans(),
    ),
    st.builds(
        Rope,
        kind=st.just("longrope"),
        factor=_FACTORS,
        original_positions=st.integers(8, 32),
        attention_factor=st.none() | st.just(1.25),
    ),
)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_written_then_read_is_the_same(family: Family, data: st.DataObject) -> None:
    config = data.draw(members(family))
    raw = json.loads(json.dumps(family.config_to_hf(config, {"eos_token_id": 3}, "float16")))
    assert raw["head_dim"] == config.head_dim
    assert raw["eos_token_id"] == 3
    assert raw["dtype"] == raw["torch_dtype"] == "float16"
    assert family_of(raw) is family
    assert family.config_from_hf(raw) == config
    # What transformers 4 looks at, and what 5 does.
    assert family.config_from_hf({key: raw[key] for key in raw if key != "rope_parameters"}) == config
    without = {key: raw[key] for key in raw if key not in ("rope_theta", "rope_scaling", "partial_rotary_factor")}
    assert family.config_from_hf(without) == config


def test_keys_of_the_source_family_are_not_carried_over() -> None:
    config = dataclasses.replace(read(LLAMA_31_8B), embed=4095)
    family, note = target_family(FAMILIES["llama"], config)
    assert (family.model_type, note is not None) == ("mistral", True)
    raw = family.config_to_hf(config, LLAMA_31_8B)
    assert not raw.keys() & {"attention_bias", "mlp_bias", "pretraining_tp", "quantization_config"}
    assert raw["sliding_window"] is None
    assert raw["architectures"] == ["MistralForCausalLM"]
    assert family.config_from_hf(raw) == config


def test_target_family() -> None:
    assert target_family(FAMILIES["llama"], SMALL) == (FAMILIES["llama"], None)
    narrow = dataclasses.replace(SMALL, embed=35)
    family, note = target_family(FAMILIES["llama"], narrow)
    assert family is FAMILIES["mistral"]
    assert note is not None and "35" in note and "MistralForCausalLM" in note
    with pytest.raises(UserError, match="bias"):
        target_family(FAMILIES["llama"], dataclasses.replace(narrow, mlp_bias=True))
    with pytest.raises(UserError, match="MistralForCausalLM"):
        target_family(FAMILIES["mistral"], dataclasses.replace(SMALL, qk_norm=True))
    windows = dataclasses.replace(SMALL, kinds=(LayerKind(), LayerKind(5)), kind_of_layer=(0, 1, 0))
    with pytest.raises(UserError, match="sliding window"):
        target_family(FAMILIES["mistral"], windows)
    with pytest.raises(UserError, match="even rotary"):
        target_family(FAMILIES["mistral"], dataclasses.replace(SMALL, head_dim=7))
    qwen = dataclasses.replace(SMALL, qkv_bias=True)
    assert qwen.head_dim * qwen.q_heads != qwen.embed
    family, note = target_family(FAMILIES["qwen2"], qwen)
    assert family is FAMILIES["qwen2"] and note is not None and "vLLM" in note
    assert target_family(FAMILIES["qwen2"], dataclasses.replace(qwen, embed=24))[1] is None


def test_import_without_jax() -> None:
    import subprocess
    import sys

    modules = ["families", "checkpoint", "safetensors", "reading", "writing", "verify", "card"]
    code = "import sys; " + "; ".join(f"import chopjax.hf.{name}" for name in modules)
    code += "; sys.exit(any(name in sys.modules for name in ('jax', 'torch', 'transformers')))"
    subprocess.run([sys.executable, "-c", code], check=True)
