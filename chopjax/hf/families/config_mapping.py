"""config.json ↔ `ModelConfig`, driven by the facts of a family's table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from chopjax.errors import UserError, short
from chopjax.hf.families.rope import ROPE_KEYS, rope_from_hf, rope_to_hf
from chopjax.hf.families.unread import refuse_unread
from chopjax.hf.families.values import flag, integer, positive
from chopjax.models.config import Activation, LayerKind, ModelConfig

if TYPE_CHECKING:
    from chopjax.hf.families.table import Family

# Config name → our name; the first of those with the same meaning is written.
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu2": "relu2",
}

# Version of transformers for which config.json is written: the oldest that the tests ran with.
_VERSION = "5.23.0"

# Model types whose `transformers_version` tells transformers whether their tokenizer has a fault of older versions. A
# model that was of such a type keeps the version of its tokenizer; another that is written as one must not look old.
_TOKENIZER_BY_VERSION = ("mistral",)

# Not carried over from the source's config.json: what the target family writes itself if it has it at all, and facts
# about a particular file or run (`auto_map` names code, and none is run). Names with a leading underscore are such too.
_DROPPED = (
    *("auto_map", "configuration_files", "torch_dtype", "dtype", "quantization_config", "compression_config"),
    *("pruned_heads", "no_rope_layers", "no_rope_layer_interval", "layers_block_type"),
    *("attention_bias", "mlp_bias", "pretraining_tp", "rms_norm_eps", "norm_eps"),
    *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    *ROPE_KEYS,
)

# Where null means something else than a missing key does.
_NULLABLE = ("num_key_value_heads", "head_dim", "sliding_window")


def config_from_hf(family: Family, raw: Mapping[str, Any]) -> ModelConfig:
    """Reads config.json, in the style of transformers 4 or 5.

    Raises:
        UserError: a field is missing, contradictory, or outside of what the decoder computes; names the field.
    """
    values = {**family.defaults, **{key: raw[key] for key in raw if raw[key] is not None or key in _NULLABLE}}
    q_heads = integer(values, "num_attention_heads")
    kv_heads = q_heads if values.get("num_key_value_heads") is None else integer(values, "num_key_value_heads")
    embed = integer(values, "hidden_size")
    if q_heads % kv_heads:
        raise UserError(f"config.json: num_key_value_heads {kv_heads} does not divide num_attention_heads {q_heads}")
    if values.get("head_dim") is None and embed % q_heads:
        raise UserError(f"config.json: head_dim is missing and {q_heads} heads do not divide hidden_size {embed}")
    head_dim = embed // q_heads if values.get("head_dim") is None else integer(values, "head_dim")
    activation = ACTIVATIONS.get(str(values["hidden_act"]))
    if activation is None:
        raise UserError(
            f"config.json: unsupported hidden_act {values['hidden_act']!r:.120}; one of {', '.join(ACTIVATIONS)}"
        )
    layers = integer(values, "num_hidden_layers")
    positions = integer(values, "max_position_embeddings")
    refuse_unread(family, raw, positions)
    kinds, kind_of_layer = _kinds(family, values, layers)
    bias = flag(values, "attention_bias")
    return ModelConfig(
        layers=layers,
        embed=embed,
        kv_heads=kv_heads,
        q_per_kv=q_heads // kv_heads,
        head_dim=head_dim,
        mlp=integer(values, "intermediate_size"),
        vocab=integer(values, "vocab_size"),
        positions=positions,
        norm=family.norm,
        norm_eps=positive(values, family.norm_eps_key),
        activation=activation,
        gated=family.gated,
        tied=flag(values, "tie_word_embeddings"),
        qkv_bias={"none": False, "qkv": True, "option": bias}[family.attention_bias],
        o_bias=family.attention_bias == "option" and bias,
        mlp_bias=family.mlp_bias and flag(values, "mlp_bias"),
        qk_norm=family.qk_norm,
        rope=rope_from_hf(raw, positions, head_dim, family.rotary_fraction),
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        initializer_range=positive(values, "initializer_range"),
    )


def config_to_hf(
    family: Family, config: ModelConfig, raw: Mapping[str, Any], dtype: str | None = None
) -> dict[str, Any]:
    """A config.json that transformers 4 and 5 both read, every shape explicit.

    Args:
        raw: the source's config.json; what `ModelConfig` does not determine (token ids, dropout, ...) is kept.
        dtype: name of the weights' dtype, as in `"bfloat16"`; None to leave it out.

    Raises:
        UserError: `family`'s stock classes cannot hold `config`.
    """
    reason = misfit(family, config)
    if reason is not None:
        raise UserError(f"stock transformers cannot load this as {family.architecture}: it {reason}")
    kept = {key: value for key, value in raw.items() if key not in _DROPPED and not key.startswith("_")}
    if raw.get("model_type") not in _TOKENIZER_BY_VERSION:
        kept["transformers_version"] = _VERSION
    written = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab,
        "hidden_size": config.embed,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.q_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": _activation_name(config.activation, raw.get("hidden_act")),
        "max_position_embeddings": config.positions,
        "initializer_range": config.initializer_range,
        family.norm_eps_key: config.norm_eps,
        "tie_word_embeddings": config.tied,
        **rope_to_hf(config.rope, partial=family.rotary_fraction is not None),
        **_windows_to_hf(family, config),
    }
    if family.attention_bias == "option":
        written["attention_bias"] = config.qkv_bias
    if family.mlp_bias:
        written["mlp_bias"] = config.mlp_bias
    if dtype is not None:
        written |= {"torch_dtype": dtype, "dtype": dtype}
    return kept | written


def misfit(family: Family, config: ModelConfig) -> str | None:
    """Why stock classes of `family` cannot hold `config`, as words that follow the class's name; None if they can."""
    rotary = int(config.head_dim * config.rope.rotary_fraction)
    biases = {
        "none": (config.qkv_bias, config.o_bias) == (False, False),
        "qkv": (config.qkv_bias, config.o_bias) == (True, False),
        "option": config.qkv_bias == config.o_bias,
    }
    windows = {config.kinds[kind].window for kind in config.kind_of_layer}
    checks = (
        (config.norm == family.norm, f"has no norm of kind {config.norm!r}"),
        (config.gated == family.gated, "has no gate in its MLP" if config.gated else "needs a gate in its MLP"),
        (config.qk_norm == family.qk_norm, f"{'needs' if family.qk_norm else 'has no'} norms on queries and keys"),
        (biases[family.attention_bias], f"cannot have biases q, k, v {config.qkv_bias} and o {config.o_bias}"),
        (family.mlp_bias or not config.mlp_bias, "has no biases in its MLP"),
        (family.windows != "none" or windows == {None}, "has no sliding windows"),
        (family.windows != "all" or len(windows) == 1, "has one sliding window for all layers"),
        (len(windows - {None}) <= 1, "has one width of sliding window"),
        (family.rotary_fraction is not None or config.rope.rotary_fraction == 1.0, "rotates whole heads only"),
        (rotary % 2 == 0, f"needs an even rotary dimension, not {rotary} of head_dim {config.head_dim}"),
        (
            not family.embed_divides or config.embed % config.q_heads == 0,
            f"refuses hidden_size {config.embed}, which its {config.q_heads} attention heads do not divide",
        ),
    )
    return next((words for fits, words in checks if not fits), None)


def _kinds(family: Family, values: Mapping[str, Any], layers: int) -> tuple[tuple[LayerKind, ...], tuple[int, ...]]:
    window = values.get("sliding_window") if family.windows != "none" else None
    if family.windows == "by_layer" and not flag(values, "use_sliding_window"):
        window = None
    types = values.get("layer_types")
    if types is None:
        first = {"none": layers, "all": 0}.get(family.windows)
        if first is None:
            first = integer(values, "max_window_layers", least=0)
        slides = [window is not None and layer >= first for layer in range(layers)]
    else:
        types = types if isinstance(types, list) else [types]
        if len(types) != layers or not set(map(str, types)) <= {"full_attention", "sliding_attention"}:
            raise UserError(
                f"config.json: layer_types must be {layers} of full_attention or sliding_attention, "
                f"found {len(types)} of {short(', '.join(sorted(set(map(str, types)))))}"
            )
        slides = [entry == "sliding_attention" for entry in types]
    if any(slides) and window is None:
        raise UserError("config.json: layer_types calls for sliding_attention, but there is no sliding_window in use")
    if family.windows == "all" and window is not None and not all(slides):
        raise UserError(f"config.json: {family.model_type} slides in every layer or in none, unlike its layer_types")
    if not any(slides):
        return (LayerKind(),), (0,) * layers
    sliding = LayerKind(window=integer(values, "sliding_window"))
    if all(slides):
        return (sliding,), (0,) * layers
    return (LayerKind(), sliding), tuple(map(int, slides))


def _windows_to_hf(family: Family, config: ModelConfig) -> dict[str, Any]:
    if family.windows == "none":
        return {}
    windows = [config.kinds[kind].window for kind in config.kind_of_layer]
    window = next((entry for entry in windows if entry is not None), None)
    if family.windows == "all":
        return {"sliding_window": window}
    # Readers that know only max_window_layers slide from there on: the longest sliding tail is the nearest to that.
    full = [layer for layer, entry in enumerate(windows) if entry is None]
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": full[-1] + 1 if full else 0,
        "layer_types": ["full_attention" if entry is None else "sliding_attention" for entry in windows],
    }


def _activation_name(activation: Activation, source: Any) -> str:
    if ACTIVATIONS.get(source) == activation:
        return cast(str, source)
    return next(name for name, meaning in ACTIVATIONS.items() if meaning == activation)
