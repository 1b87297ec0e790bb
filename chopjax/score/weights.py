"""Scores from weights and their gradients, pooled by the names of axes.

Magnitude is the L1 norm of weights, Taylor the first-order change of the loss, |w · ∂L/∂w| of each weight: the
element-wise criteria of LLM-Pruner (arXiv 2305.11627, section 3.2) for widths and of Shortened LLaMA (arXiv
2402.02834, section 2.2) for layers. Both are sums over weights, and which sums is read off the declarations.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chopjax.axes import flatten
from chopjax.data.labels import next_token_labels
from chopjax.distill.config import LossConfig
from chopjax.distill.losses import chunked_loss
from chopjax.models.config import ModelConfig
from chopjax.models.constrain import Constrain, unpinned
from chopjax.models.decoder import Params, forward, unembedding
from chopjax.models.parameters import declare
from chopjax.score.file import HALVES
from chopjax.score.pooling import AXES, pool


def magnitude(config: ModelConfig, params: Params) -> dict[str, Float[Array, "..."]]:
    """L1 norms of the weights, pooled for each of `AXES`, float32; higher is kept.

    Args:
        config: the architecture of `params`.
        params: nested dict of arrays, of any floating dtype and sharded in any way.
    """
    return _pooled({path: jnp.abs(w.astype(jnp.float32)) for path, w in flatten(params).items()}, config)


def taylor_sums(
    config: ModelConfig,
    params: Params,
    batch: Mapping[str, Int[Array, "batch length"]],
    half: Int[Array, ""] | int = 0,
    *,
    remat: str = "full",
    chunk: int = 512,
    vocab_tokens: int | None = None,
    constrain: Constrain = unpinned,
) -> dict[str, Float[Array, "half=2 *axis"]]:
    """First-order change of a batch's loss, |w · ∂L/∂w|, pooled for each of `AXES`; higher is kept.

    L is the mean over the batch's tokens that predict, so that batches with more padding weigh as much as others. The
    absolute value is taken of the gradient of the whole batch: it is no sum over rows, so a batch belongs to one half
    of the calibration rows as a whole (the number of the batch modulo 2), and one batch alone leaves the other half
    empty. Results are those of the batch size that was scored with.

    Args:
        config: the architecture of `params`.
        params: parameters; the passes run in their dtype, and so is the gradient rounded. Products and sums of the
            two are float32.
        batch: `tokens`, `segment_ids` (0 = padding) and `positions`, int32 [batch, length]; bool `targets` where only
            some tokens count.
        half: 0 or 1.
        remat: which activations the backward pass makes again (`models.decoder.REMAT`).
        chunk: tokens of the batch whose logits exist at one time.
        vocab_tokens: see `chopjax.distill.losses.chunked_loss`.
        constrain: pins activation shardings.

    Returns:
        `taylor/AXIS`, float32, of this one batch; the caller adds batches on the host in float64.
    """
    labels, weights = next_token_labels(batch["tokens"], batch["segment_ids"], batch.get("targets"))
    loss = LossConfig.plain(chunk)

    def total(params: Params) -> Float[Array, ""]:
        inputs = batch["tokens"], batch["positions"], batch["segment_ids"]
        hidden = forward(config, params, *inputs, remat=remat, constrain=constrain).hidden
        table = unembedding(config, params)
        options: dict[str, Any] = {"vocab_tokens": vocab_tokens, "constrain": constrain}
        return chunked_loss(loss, hidden, table, labels, weights, **options)[0]

    gradients = flatten(jax.grad(total)(params))
    tokens = jnp.maximum(jnp.sum(weights, dtype=jnp.float32), 1)
    changes = {
        path: jnp.abs(w.astype(jnp.float32) * gradients[path].astype(jnp.float32)) / tokens
        for path, w in flatten(params).items()
    }
    in_half = jax.nn.one_hot(jnp.asarray(half), HALVES, dtype=jnp.float32)
    return {f"taylor/{axis}": _outer(in_half, change) for axis, change in _pooled(changes, config).items()}


def _outer(half: Float[Array, "half"], values: Float[Array, "*axis"]) -> Float[Array, "half *axis"]:
    return jnp.expand_dims(half, tuple(range(1, values.ndim + 1))) * values[None]


def _pooled(values: Mapping[str, Array], config: ModelConfig) -> dict[str, Array]:
    leaves = declare(config)
    return {axis: pool(values, leaves, axis) for axis in AXES}
