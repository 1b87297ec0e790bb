"""One pass over calibration rows: every statistic of activations and of hidden states that a criterion asks for.

All of them are sums, so they may be added over batches, devices, hosts and files before a root, a ratio or a rank is
taken. Sources: Minitron (arXiv 2407.14679, section 2.2 and table 11) for widths, ShortGPT (arXiv 2403.03853) and
Gromov et al. (arXiv 2403.17887) for layers.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from chopjax.models.block import Masks
from chopjax.models.config import ModelConfig
from chopjax.models.constrain import Constrain, unpinned
from chopjax.models.decoder import Params, forward
from chopjax.score.aggregate import finish
from chopjax.score.file import HALVES

__all__ = ["finish", "score_sums"]

Sums = dict[str, Array]

# Tokens of each row whose pairs of hidden states exist at one time: few, so that their states stay in a CPU's cache.
CHUNK = 8


def score_sums(
    config: ModelConfig,
    params: Params,
    batch: Mapping[str, Array],
    half: Int[Array, "batch"] | None = None,
    constrain: Constrain = unpinned,
    masks: Masks | None = None,
) -> Sums:
    """Sums over the rows and tokens of one batch: float32, but for `words`; the caller adds batches in float64.

    Inside a row, neurons, heads and channels have three statistics over its tokens, in this order: the mean of |a|,
    the L2 norm (Σ a²)^½, and the variance of the signed a. For each, the sums over rows of the statistic and of its
    square are given, from which all nine aggregations of Minitron's table 11 follow (`chopjax.score.aggregate`).
    Padding counts nowhere, and neither does a row without tokens.

    For layers, hidden states are compared token by token: the inputs of all blocks and the output of the last one,
    which makes `states` = layers + 1. They are held for one batch, in the dtype of `params`: the memory of a pass
    grows with the batch and not with the number of rows scored.

    Args:
        config: the architecture of `params`.
        params: parameters; the pass runs in their dtype.
        batch: `tokens`, `positions` and `segment_ids`, int32 [batch, length]; segment 0 is padding.
        half: for each row 0 or 1, the half of the calibration rows that it belongs to; None for even and odd rows of
            the batch.
        constrain: pins activation shardings.
        masks: what is gone already, where widths are cut in several steps; its units score 0.

    Returns:
        All with a leading axis of the two halves:
        `rows`, `tokens` [2]: how many there were.
        `mlp` [2, 3, 2, layers, mlp]: of the inputs of the down projection.
        `q_per_kv` [2, 3, 2, layers, kv_heads, q_per_kv]: of the L2 norms over `head_dim` of what each head gives.
        `embed` [2, 3, 2, layers, 2, embed]: of the outputs of the two norms of each block; the final norm is not
        among them, as in NVIDIA ModelOpt.
        `cosine`, `angle` [2, states, states]: over tokens, of cos(h_i, h_j) and of arccos(cos(h_i, h_j)) / π.
        `last_angle` [2, states, states]: the latter over the last token of each row alone.
        `words` int32 [2, vocab]: how often each token occurs.
    """
    tokens, segments = batch["tokens"], batch["segment_ids"]
    half = jnp.arange(tokens.shape[0], dtype=jnp.int32) % HALVES if half is None else half
    valid = segments > 0
    filled = jnp.any(valid, axis=1, keepdims=True).astype(jnp.float32)
    halves = jax.nn.one_hot(half, HALVES, dtype=jnp.float32) * filled

    def tap(a: Mapping[str, Array]) -> dict[str, Array]:
        heads = jnp.linalg.norm(a["heads"].astype(jnp.float32), axis=-1)
        norms = [_moments(a[name], valid, halves) for name in ("attention_norm", "mlp_norm")]
        return {
            "mlp": _moments(a["mlp_hidden"], valid, halves),
            "q_per_kv": _moments(heads, valid, halves),
            "embed": jnp.stack(norms, axis=3),
            "states": a["block_output"],
        }

    output = forward(config, params, tokens, batch["positions"], segments, masks=masks, tap=tap, constrain=constrain)
    states = output.taps.pop("states")
    return {
        "rows": jnp.sum(halves, axis=0),
        "tokens": jnp.sum(_by_token(valid, halves), axis=(0, 1)),
        **{name: jnp.moveaxis(moments, 0, 3) for name, moments in output.taps.items()},
        **_pairs(output.embedded, states, valid, halves, constrain.size(constrain.parts("length"))),
        "words": jnp.zeros((HALVES, config.vocab), jnp.int32).at[half[:, None], tokens].add(valid.astype(jnp.int32)),
    }


def _moments(
    x: Float[Array, "batch length *units"], valid: Bool[Array, "batch length"], halves: Float[Array, "batch half"]
) -> Float[Array, "half sequence=3 moment=2 *units"]:
    """Sums over rows of three statistics of each row, and of their squares."""
    x = x.astype(jnp.float32)
    counted = valid.reshape(*valid.shape, *[1] * (x.ndim - 2))
    count = jnp.maximum(jnp.sum(counted, axis=1, dtype=jnp.float32), 1)

    def mean(x: Array) -> Array:
        return jnp.sum(jnp.where(counted, x, 0), axis=1) / count

    centre = mean(x)
    # Around the row's own mean: the difference of two large sums of squares would leave float32 nothing.
    variance = mean(jnp.square(x - centre[:, None]))
    norm = jnp.sqrt(count * (variance + jnp.square(centre)))
    rows = jnp.stack([mean(jnp.abs(x)), norm, variance], axis=1)
    return _sum(halves, jnp.stack([rows, jnp.square(rows)], axis=2), 1)


def _pairs(
    first: Float[Array, "batch length embed"],
    later: Float[Array, "layers batch length embed"],
    valid: Bool[Array, "batch length"],
    halves: Float[Array, "batch half"],
    parts: int,
) -> Sums:
    """Sums of cosines and angles between the hidden states of each token, a chunk of each part of the length at a time.

    The parts are those in which devices hold rows, so that each device goes through its own tokens.
    """
    index = jnp.arange(valid.shape[1], dtype=jnp.int32)
    last = valid & (index[None] == jnp.max(jnp.where(valid, index[None], -1), axis=1, keepdims=True))
    every, ends = _by_token(valid, halves), _by_token(last, halves)
    states = later.shape[0] + 1
    one, other = np.triu_indices(states, k=1)

    def of(start: Int[Array, ""] | int, size: int) -> Sums:
        def cut(x: Array, axis: int) -> Array:
            split = x.reshape(*x.shape[:axis], parts, length, *x.shape[axis + 1 :])
            chunk = jax.lax.dynamic_slice_in_dim(split, start, size, axis + 1)
            return chunk.reshape(*x.shape[:axis], parts * size, *x.shape[axis + 1 :])

        h = jnp.concatenate([cut(first, 1)[None], cut(later, 2)]).astype(jnp.float32)
        products = jnp.einsum("sble,tble->blst", h, h, precision=jax.lax.Precision.HIGHEST)
        norms = jnp.sqrt(jnp.diagonal(products, axis1=2, axis2=3))
        scale = jnp.maximum(norms[..., one] * norms[..., other], jnp.finfo(jnp.float32).tiny)
        cosine = jnp.clip(products[..., one, other] / scale, -1, 1)
        angle = jnp.arccos(cosine) / jnp.pi
        whole, end = cut(every, 1), cut(ends, 1)
        return {"cosine": _sum(whole, cosine, 2), "angle": _sum(whole, angle, 2), "last_angle": _sum(end, angle, 2)}

    length = valid.shape[1] // parts
    size = min(CHUNK, length)
    full, rest = divmod(length, size)
    chunks = jax.lax.map(lambda k: of(k * size, size), jnp.arange(full, dtype=jnp.int32))
    sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), chunks)
    if rest:
        sums = jax.tree.map(jnp.add, sums, of(full * size, rest))
    # A state's cosine with itself is 1; made as the others are, rounding would leave it an angle.
    itself = jnp.sum(every, axis=(0, 1))[:, None, None] * jnp.eye(states, dtype=jnp.float32)[None]
    whole = {
        name: jnp.zeros((HALVES, states, states), jnp.float32).at[:, one, other].set(x) for name, x in sums.items()
    }
    whole = {name: x + jnp.swapaxes(x, 1, 2) for name, x in whole.items()}
    return whole | {"cosine": whole["cosine"] + itself}


def _by_token(counted: Bool[Array, "batch length"], halves: Float[Array, "batch half"]) -> Array:
    """1 for each counted token in the half that its row belongs to: float32 [batch, length, half]."""
    return halves[:, None, :] * counted[:, :, None].astype(jnp.float32)


def _sum(weights: Float[Array, "*over half"], x: Float[Array, "*over_rest"], over: int) -> Float[Array, "half *rest"]:
    """Weighted sums over the leading axes, in float32 on every kind of device."""
    axes = tuple(range(over))
    return jax.lax.dot_general(weights, x, ((axes, axes), ((), ())), precision=jax.lax.Precision.HIGHEST)
