"""Every parameter of the decoder, declared once by the names of its axes. Imports without jax."""

import math
from collections.abc import Mapping

from chopjax.axes import Leaf, Role
from chopjax.models.config import ModelConfig


def declare(config: ModelConfig) -> dict[str, Leaf]:
    """All parameters that `config` calls for, as path → declaration.

    The Flax modules, the family tables, shardings, chops and counts read this and nothing else, so a fact about a
    parameter is written here or nowhere.
    """
    leaves: dict[str, Leaf] = {}

    def norm(path: str, axes: str, kind: str) -> None:
        leaves[f"{path}/scale"] = Leaf.parse(axes, Role.NORM)
        if kind != "rms":
            leaves[f"{path}/bias"] = Leaf.parse(axes, Role.BIAS)

    def linear(path: str, flow: str, bias: bool) -> None:
        leaf = Leaf.parse(f"layers | {flow}", Role.MATRIX)
        leaves[f"{path}/kernel"] = leaf
        if bias:
            leaves[f"{path}/bias"] = Leaf(leaf.stack, (), leaf.outputs, Role.BIAS)

    leaves["embed/table"] = Leaf.parse("vocab -> embed", Role.TABLE)
    norm("layers/attention_norm", "layers | embed", config.norm)
    linear("layers/attention/q", "embed -> kv_heads q_per_kv head_dim", config.qkv_bias)
    linear("layers/attention/k", "embed -> kv_heads head_dim", config.qkv_bias)
    linear("layers/attention/v", "embed -> kv_heads head_dim", config.qkv_bias)
    linear("layers/attention/o", "kv_heads q_per_kv head_dim -> embed", config.o_bias)
    if config.qk_norm:
        norm("layers/attention/q_norm", "layers | head_dim", "rms")
        norm("layers/attention/k_norm", "layers | head_dim", "rms")
    norm("layers/mlp_norm", "layers | embed", config.norm)
    if config.gated:
        linear("layers/mlp/gate", "embed -> mlp", config.mlp_bias)
    linear("layers/mlp/up", "embed -> mlp", config.mlp_bias)
    linear("layers/mlp/down", "mlp -> embed", config.mlp_bias)
    norm("final_norm", "embed", config.norm)
    if not config.tied:
        leaves["unembed/kernel"] = Leaf.parse("embed -> vocab", Role.TABLE)
    return leaves


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path → shape of every parameter of `config`."""
    return {path: leaf.shape(config.sizes) for path, leaf in declare(config).items()}


def config_mismatch(config: ModelConfig, found: Mapping[str, tuple[int, ...]]) -> str | None:
    """The first difference between the shapes that `config` calls for and those found, in words; None if equal."""
    wanted = shapes(config)
    for path in {**wanted, **found}:
        if wanted.get(path) != found.get(path):
            return f"{path}: config calls for {wanted.get(path)}, found {found.get(path)}"
    return None


def count(config: ModelConfig, embeddings: bool = True) -> int:
    """Number of parameters; without the embedding and unembedding tables if `embeddings` is False."""
    leaves = declare(config).values()
    return sum(leaf.size(config.sizes) for leaf in leaves if embeddings or leaf.role is not Role.TABLE)


def flops_per_token(config: ModelConfig, length: int) -> float:
    """Forward FLOPs of one token in a sequence of `length` tokens, attention counted as causal.

    Two for each weight of a matrix product (the unembedding included, the embedding lookup not), and
    2 · 2 · q_heads · head_dim for each visible key: (length + 1) / 2 of them on average, fewer in a sliding window.
    A training step costs three times this for the student, once for a teacher.
    """
    sizes = config.sizes
    matrices = sum(leaf.size(sizes) for leaf in declare(config).values() if leaf.role is Role.MATRIX)
    products = 2 * (matrices + sizes["vocab"] * sizes["embed"])
    return products + 4 * config.q_heads * config.head_dim * visible_keys(config, length)


def kv_cache_bytes(config: ModelConfig, length: int, bytes_per_value: int = 2) -> int:
    """Bytes of keys and values held for one sequence of `length` tokens, sliding windows counted as such."""
    return 2 * math.prod((cached_tokens(config, length), config.kv_heads, config.head_dim, bytes_per_value))


def visible_keys(config: ModelConfig, length: int) -> float:
    """Keys that a token sees, on average over a sequence of `length` tokens, summed over the layers."""
    return sum(_mean_visible_keys(length, config.kinds[kind].window) for kind in config.kind_of_layer)


def cached_tokens(config: ModelConfig, length: int) -> int:
    """Tokens whose keys and values are held after a sequence of `length` tokens, summed over the layers."""
    return sum(min(length, config.kinds[kind].window or length) for kind in config.kind_of_layer)


def _mean_visible_keys(length: int, window: int | None) -> float:
    seen = min(window or length, length)
    return (seen * (seen + 1) / 2 + (length - seen) * seen) / length
