"""Tiny random models of every family, made by stock transformers, for parity and round-trip tests.

Importing this file needs neither torch nor transformers; `small_hf_config` and `save_random` do.
"""

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "nemotron")

# Two windows, so that a sequence of a dozen tokens is longer than each of them.
_WINDOWS = (3, 5)
_LAYERS, _HEAD_DIM, _POSITIONS = 3, 6, 40


def rope_parameters(kind: str, rotary: int, positions: int = _POSITIONS) -> dict[str, Any]:
    """`rope_parameters` in the style of transformers 5 for one scaling kind; `rotary` is the width that is rotated."""
    base: dict[str, Any] = {"rope_type": kind, "rope_theta": 777.0}
    original = positions // 4
    extra: dict[str, dict[str, Any]] = {
        "default": {},
        "linear": {"factor": 2.5},
        "dynamic": {"factor": 3.0},
        "llama3": {
            "factor": 4.0,
            "original_max_position_embeddings": original,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        "yarn": {
            "factor": 4.0,
            "original_max_position_embeddings": original,
            "beta_fast": 8.0,
            "beta_slow": 1.0,
        },
        "longrope": {
            "factor": 4.0,
            "original_max_position_embeddings": original,
            "short_factor": [1.0 + 0.1 * i for i in range(rotary // 2)],
            "long_factor": [2.0 + 0.3 * i for i in range(rotary // 2)],
        },
    }
    return base | extra[kind]


def options(family: str) -> st.SearchStrategy[dict[str, Any]]:
    """Hypothesis strategy over the options of `small_hf_config` that the family has."""
    choices: dict[str, st.SearchStrategy[Any]] = {
        "heads": st.sampled_from([(2, 1), (2, 2), (4, 2), (6, 3)]),
        "rope": st.sampled_from(["default", "linear", "dynamic", "llama3", "yarn", "longrope"]),
        "tied": st.booleans(),
        "activation": st.sampled_from(["silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu2"]),
        "layers": st.integers(1, 4),
    }
    if family in ("llama", "qwen3", "nemotron"):
        choices["attention_bias"] = st.booleans()
    if family in ("llama", "nemotron"):
        choices["mlp_bias"] = st.booleans()
    if family in ("mistral", "qwen2", "qwen3"):
        choices["window"] = st.sampled_from([None, *_WINDOWS])
    if family == "nemotron":
        choices["rotary_fraction"] = st.sampled_from([0.5, 1.0])
    return st.fixed_dictionaries(choices)


def small_hf_config(
    family: str,
    *,
    heads: tuple[int, int] = (4, 2),
    rope: str = "default",
    tied: bool = False,
    activation: str | None = None,
    layers: int = _LAYERS,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    window: int | None = None,
    rotary_fraction: float = 0.5,
    head_dim: int = _HEAD_DIM,
    hidden: int = 36,
    mlp: int = 19,
    vocab: int = 67,
    positions: int = _POSITIONS,
    **overrides: Any,
) -> Any:
    """A tiny transformers config of `family`, odd in size wherever stock transformers allows it.

    Args:
        heads: query heads and key/value heads.
        window: sliding window; for Qwen it holds from the second layer on.
        rotary_fraction: only Nemotron has it.
        overrides: further keyword arguments of the config class.
    """
    from transformers import AutoConfig

    if family == "nemotron" and head_dim == _HEAD_DIM:
        head_dim += 2  # so that half of it is even
    fields: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": head_dim,
        "hidden_act": activation or ("relu2" if family == "nemotron" else "silu"),
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
        "rope_parameters": rope_parameters(rope, head_dim, positions),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family in ("llama", "qwen3", "nemotron"):
        fields["attention_bias"] = attention_bias
    if family in ("llama", "nemotron"):
        fields["mlp_bias"] = mlp_bias
    if family == "mistral":
        fields["sliding_window"] = window
    if family in ("qwen2", "qwen3"):
        fields |= {"use_sliding_window": window is not None, "sliding_window": window, "max_window_layers": 1}
    if family == "nemotron":
        rope_fields = rope_parameters(rope, int(head_dim * rotary_fraction), positions)
        fields["rope_parameters"] = rope_fields | {"partial_rotary_factor": rotary_fraction}
    return AutoConfig.for_model(family, **(fields | overrides))


def save_random(
    folder: Path, hf_config: Any, dtype: str = "float32", seed: int = 0, max_shard_size: str | int = "5GB"
) -> Any:
    """Saves a model of `hf_config` with every parameter random (biases and norms too) and returns it, in `dtype`.

    Matrices are drawn wide enough that the logits are not close to zero.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    generator = torch.Generator().manual_seed(seed)
    hf_config.dtype = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_config(hf_config).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            matrix = parameter.ndim > 1
            scale = 1.5 * parameter.shape[-1] ** -0.5 if matrix else 0.3
            centre = 1.0 if "norm" in name and name.endswith("weight") and hf_config.model_type != "nemotron" else 0.0
            parameter.copy_(centre + scale * noise)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model
