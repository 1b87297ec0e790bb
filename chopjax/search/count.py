"""What candidates cost, for arrays of sizes at once, from the same declarations that count a single model."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int, Num

from chopjax.axes import Role
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import cached_tokens, declare, visible_keys
from chopjax.search.roofline import Chip, latency

BYTES_PER_VALUE = 2  # bfloat16, for weights and cache

SizeArrays = Mapping[str, Int[np.ndarray, " candidates"]]
"""Axis → sizes, int64, for the axes in which candidates differ."""


def parameters(config: ModelConfig, sizes: SizeArrays) -> dict[Role, Int[np.ndarray, " candidates"]]:
    """Number of parameters by role. Axes that `sizes` lacks have the size that `config` gives them."""
    every: dict[str, Any] = {**config.sizes, **sizes}
    totals: dict[Role, Any] = dict.fromkeys(Role, 0)
    for leaf in declare(config).values():
        totals[leaf.role] = totals[leaf.role] + math.prod(every[name] for name in leaf.axes)
    shape = np.broadcast_shapes(*(array.shape for array in sizes.values()))
    return {role: np.broadcast_to(total, shape) for role, total in totals.items()}


def figures(
    config: ModelConfig, sizes: SizeArrays, context: int, sequences: int = 1, chip: Chip | None = None, chips: int = 1
) -> dict[str, Num[np.ndarray, " candidates"]]:
    """What every candidate costs, named as the budgets are.

    Equal to `models.parameters.count`, `flops_per_token` and `kv_cache_bytes` of each candidate. Which layers stay is
    not known yet: where some have sliding windows and not all stay, those that see the most are taken to stay, so FLOPs
    and cache are upper bounds then, and a candidate that meets a budget meets it whichever layers go.

    Args:
        config: the source.
        sizes: of the candidates.
        context: tokens of a sequence.
        sequences: sequences decoded together.
        chip: where given, latencies on it are added.
        chips: number of them.

    Returns:
        `params`, `non_embedding_params`: parameters, int64.
        `flops`: forward FLOPs of a token on average over `context` tokens, float64.
        `kv_cache`: bytes of all sequences' cache, `bytes`: with the weights, int64.
        `latency`: milliseconds to decode a token of each sequence after `context` tokens, and `prefill`: to read these
        tokens, both at best, float64; only with a chip.
    """
    every: dict[str, Any] = {**config.sizes, **sizes}
    count = parameters(config, sizes)
    inner = sum(count[role] for role in Role if role is not Role.TABLE)
    params = inner + count[Role.TABLE]
    unembedding = 2 * every["vocab"] * every["embed"]
    products = 2 * count[Role.MATRIX] + unembedding
    attention = 4 * every["kv_heads"] * every["q_per_kv"] * every["head_dim"]  # FLOPs for each key that a token sees
    held = _by_depth(config, every["layers"], context, cached_tokens, np.int64)
    flops = products + attention * _by_depth(config, every["layers"], context, visible_keys, np.float64)
    cache = sequences * 2 * BYTES_PER_VALUE * held * every["kv_heads"] * every["head_dim"]
    weights = BYTES_PER_VALUE * params
    found = {
        "params": params,
        "non_embedding_params": inner,
        "flops": flops,
        "kv_cache": cache,
        "bytes": weights + cache,
    }
    if chip:
        # A table that only looks tokens up is not read as a whole.
        read = weights - (0 if config.tied else BYTES_PER_VALUE * every["vocab"] * every["embed"])
        found["latency"] = latency(sequences * (products + attention * held), read + cache, chip, chips)
        # Only the last token of a prompt needs logits.
        whole = sequences * (context * flops - (context - 1.0) * unembedding)
        found["prefill"] = latency(whole, read, chip, chips)
    shape = params.shape
    return {name: np.broadcast_to(array, shape) for name, array in found.items()}


def _by_depth(
    config: ModelConfig,
    layers: Int[np.ndarray, " candidates"] | int,
    context: int,
    of: Callable[[ModelConfig, int], float],
    dtype: type,
) -> Num[np.ndarray, " candidates"]:
    """`of`, a sum over layers, for each number of layers, those with the widest windows staying."""
    windows = [config.kinds[kind].window or math.inf for kind in config.kind_of_layer]
    widest = sorted(range(config.layers), key=lambda layer: -windows[layer])
    table: np.ndarray = np.zeros(config.layers + 1, dtype)
    for number in range(1, config.layers + 1):
        kept = tuple(config.kind_of_layer[layer] for layer in sorted(widest[:number]))
        table[number] = of(dataclasses.replace(config, layers=number, kind_of_layer=kept), context)
    return table[layers]
