"""Activation scores of Minitron (arXiv 2407.14679, section 2.2), as one pure pass over calibration rows.

Aggregation is the paper's choice (its table 11): mean of the magnitude over a sequence, L2 over sequences. Statistics
are sums over rows, so they may be added over batches, hosts and files before `finish`.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from chopjax.models.block import Constrain
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Params, forward

Sums = dict[str, Float[Array, "..."]]


def score_sums(
    config: ModelConfig,
    params: Params,
    batch: Mapping[str, Array],
    constrain: Constrain = lambda x, axes: x,
) -> Sums:
    """Sums over the rows of `batch` of squared mean magnitudes, float32, unreduced along the axis that they rank.

    Args:
        config: the architecture of `params`.
        params: parameters; the pass runs in their dtype.
        batch: `tokens`, `positions` and `segment_ids`, int32 [batch, length]; segment 0 is padding and counts nowhere.
        constrain: pins activation shardings.

    Returns:
        `mlp` [layers, mlp] from the inputs of the down projection; `q_per_kv` [layers, kv_heads, q_per_kv] from the
        L2 norm over `head_dim` of each head's output; `embed` [layers, 2, embed] from the two norms of each block.
    """
    weights = (batch["segment_ids"] > 0).astype(jnp.float32)
    weights = weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1)

    def over_rows(magnitude: Float[Array, "batch length *units"]) -> Float[Array, "*units"]:
        mean = jnp.einsum("bl,bl...->b...", weights, magnitude.astype(jnp.float32))
        return jnp.sum(mean * mean, axis=0)

    def tap(a: Mapping[str, Array]) -> Sums:
        heads = jnp.linalg.norm(a["heads"].astype(jnp.float32), axis=-1)
        norms = [over_rows(jnp.abs(a[name])) for name in ("attention_norm", "mlp_norm")]
        return {"mlp": over_rows(jnp.abs(a["mlp_hidden"])), "q_per_kv": over_rows(heads), "embed": jnp.stack(norms)}

    places = batch["positions"], batch["segment_ids"]
    return forward(config, params, batch["tokens"], *places, tap=tap, constrain=constrain).taps


def finish(sums: Mapping[str, Float[np.ndarray, "..."]]) -> dict[str, Float[np.ndarray, "..."]]:
    """Scores from summed statistics, each with the shape of the axis that it ranks; higher is kept.

    The root of each sum; `kv_heads` is the L2 norm over the query heads that share it, and `embed` is summed over all
    norms, since one order serves the whole network.
    """
    roots = {name: np.sqrt(np.asarray(value, np.float64)) for name, value in sums.items()}
    return {
        "mlp": roots["mlp"],
        "q_per_kv": roots["q_per_kv"],
        "kv_heads": np.linalg.norm(roots["q_per_kv"], axis=-1),
        "embed": roots["embed"].sum(axis=(0, 1)),
    }
