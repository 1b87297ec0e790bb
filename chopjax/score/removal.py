"""The loss without each layer or block of layers, and greedy removal by it.

Leaving out one layer is the perplexity criterion of Minitron (arXiv 2407.14679, section 2.2) and Shortened LLaMA (arXiv
2402.02834), a contiguous block that of "LLM Pruning and Distillation in Practice" (arXiv 2408.11796), one layer after
another with new scores in between SLEB's (arXiv 2402.09025).
"""

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from chopjax.data.labels import next_token_labels
from chopjax.distill.losses import LossConfig, token_losses
from chopjax.errors import UserError
from chopjax.models.config import ModelConfig
from chopjax.models.constrain import Constrain, unpinned
from chopjax.models.decoder import Params, unembedding
from chopjax.models.partial import enter, leave, run_layers
from chopjax.score.candidates import SCORED, LossMetric, Removal, dense_name, mean_losses, one_by_one, without_name
from chopjax.score.file import HALVES

Batch = Mapping[str, Any]


def leave_out(
    config: ModelConfig,
    params: Params,
    batches: Iterable[Batch],
    count: int = 1,
    metric: LossMetric = "next_token",
    order: Sequence[int] | None = None,
    *,
    chunk: int = 512,
    vocab_tokens: int | None = None,
    constrain: Constrain = unpinned,
) -> dict[str, Float[np.ndarray, "halves *starts"]]:
    """The loss over calibration rows without each `count` consecutive layers.

    What comes before the gap is shared by all later starts, so a batch takes `layer_evaluations` in place of one full
    pass for each start. One compilation serves any `count`, `order` and row.

    Args:
        config: the architecture of `params`.
        params: parameters in the compute dtype, sharded in any way.
        batches: int32 `tokens`, `segment_ids` (0 = padding) and maybe `positions`, all [batch, length]; numpy or
            already on the mesh; bool `targets` where only some tokens count. Rows are even and odd in the order in
            which they come, or by int32 `half` [batch].
        count: layers that are left out together.
        metric: `next_token` (cross entropy) or `kl`, KL(model with all its layers ‖ candidate).
        order: the layers that are there to begin with, ascending; all of them if None.
        chunk: tokens of a batch whose logits exist at one time.
        vocab_tokens: see `chopjax.distill.losses.chunked_loss`.
        constrain: pins activation shardings by the names of their axes.

    Returns:
        float64 sums in nats over the tokens that predict, of even and of odd rows:
        `without_one/METRIC`, or with a `count` above 1 `without_block/METRIC/COUNT`, [2, starts] with
        len(order) - count + 1 starts, counted in `order`; `dense/METRIC` [2], with nothing left out of `order`;
        `scored` [2], the number of those tokens.

    Raises:
        UserError: `count` leaves no layer, a metric that is none of the above, or no token to score.
    """
    kept = tuple(range(config.layers)) if order is None else tuple(order)
    _check(metric, count, len(kept))
    sums = functools.partial(
        batch_sums, config, metric=metric, chunk=chunk, vocab_tokens=vocab_tokens, constrain=constrain
    )
    padded = np.zeros(config.layers, np.int32)
    padded[: len(kept)] = kept
    where = padded, np.int32(len(kept)), np.int32(count)
    totals: dict[str, np.ndarray] = {}
    previous: dict[str, Array] = {}
    rows = 0
    # Reading sums waits for their batch, so that at most two batches are under way at a time.
    for batch in batches:
        found = sums(params, batch, *where, np.int32(rows % HALVES))
        rows += len(batch["tokens"])
        _add(totals, previous)
        previous = found
    _add(totals, previous)
    if not totals or not totals[SCORED].sum():
        raise UserError("score: the calibration rows hold no token to score; give more text")
    without = totals.pop("without")[:, : len(kept) - count + 1]
    return {without_name(metric, count): without, dense_name(metric): totals["dense"], SCORED: totals[SCORED]}


@functools.partial(jax.jit, static_argnames=("config", "metric", "chunk", "vocab_tokens", "constrain"))
def batch_sums(
    config: ModelConfig,
    params: Params,
    batch: Batch,
    order: Int[Array, "layers"],
    length: Int[Array, ""],
    count: Int[Array, ""],
    first_half: Int[Array, ""],
    *,
    metric: LossMetric,
    chunk: int = 512,
    vocab_tokens: int | None = None,
    constrain: Constrain = unpinned,
) -> dict[str, Float[Array, "halves *starts"]]:
    """float32 sums of one batch: `without` [2, layers], of which the first length - count + 1 hold; `dense`; `scored`.

    Args:
        order: the layers, of which the first `length` are there.
        length: number of layers that are there.
        count: number of layers that are left out together.
        first_half: half of the first row, 0 or 1; the rows alternate.
    """
    places = batch.get("positions"), batch["segment_ids"]
    stack, embedded = enter(config, params, batch["tokens"], *places, constrain=constrain)
    labels, weights = next_token_labels(batch["tokens"], batch["segment_ids"], batch.get("targets"))
    unembed = unembedding(config, params)
    teacher: tuple[Array, Array] | None = None
    if metric == "kl":
        whole = jnp.arange(config.layers, dtype=jnp.int32)
        teacher = leave(stack, run_layers(stack, embedded, whole, 0, config.layers)), unembed
    loss = LossConfig(next_token=1.0, kl=float(teacher is not None), chunk=chunk)
    counted = (jnp.arange(len(weights), dtype=jnp.int32) + first_half) % HALVES
    row_half = batch.get("half", counted)

    def by_half(values: Float[Array, "batch length"]) -> Float[Array, "halves"]:
        rows = jnp.sum(values * weights, axis=1)
        return constrain(jax.ops.segment_sum(rows, row_half, HALVES), (None,))

    def loss_of(x: Float[Array, "batch length embed"]) -> Float[Array, "halves"]:
        options: dict[str, Any] = {"vocab_tokens": vocab_tokens, "constrain": constrain}
        return by_half(token_losses(loss, leave(stack, x), unembed, labels, teacher, **options)[metric])

    def one_start(start: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        before, without = carry
        found = loss_of(run_layers(stack, before, order, start + count, length))
        # The stream before the next start is carried on, so that nothing of size layers x tokens is held.
        return run_layers(stack, before, order, start, start + 1), without.at[:, start].set(found)

    starts = length - count + 1
    empty = jnp.zeros((HALVES, config.layers), jnp.float32)
    before, without = jax.lax.fori_loop(0, starts, one_start, (embedded, empty))
    dense = loss_of(run_layers(stack, before, order, starts, length))
    return {"without": without, "dense": dense, SCORED: by_half(jnp.ones_like(weights))}


def layer_evaluations(layers: int, length: int, count: int, metric: LossMetric) -> int:
    """Layers that `batch_sums` runs on a batch; each start with a pass of its own would take `(starts + 1) * layers`.

    One pass over the `length` layers that are there, and for each start those after the gap; for `kl`, one pass over
    all `layers` besides.
    """
    starts = length - count + 1
    return length + starts * (starts - 1) // 2 + (layers if metric == "kl" else 0)


def greedy(
    config: ModelConfig,
    params: Params,
    batches: Callable[[], Iterable[Batch]],
    remove: int,
    metric: LossMetric = "next_token",
    *,
    keep: Collection[int] = (),
    **options: Any,
) -> Removal:
    """Removes the layer without which the loss is lowest, scores again, and so on; SLEB's algorithm on any loss.

    Args:
        config: the architecture of `params`.
        params: parameters in the compute dtype, sharded in any way.
        batches: gives the calibration batches anew for each step, of the same shape each time; see `leave_out`.
        remove: number of layers to remove.
        metric: see `leave_out`; `kl` is to the model with all its layers in every step.
        keep: layers that must stay.
        options: the further options of `leave_out`.

    Returns:
        The layers in the order of their removal, with the mean loss of a token after each, in nats.

    Raises:
        UserError: as `leave_out`; too few layers may go; or no candidate has a finite loss.
    """

    def losses(order: tuple[int, ...]) -> Float[np.ndarray, "starts"]:
        return mean_losses(leave_out(config, params, batches(), 1, metric, order, **options), metric)

    return one_by_one(config.layers, remove, losses, keep)


def _check(metric: str, count: int, length: int) -> None:
    if metric not in get_args(LossMetric):
        raise UserError(f"metric is {metric!r}; choose one of {', '.join(map(repr, get_args(LossMetric)))}")
    if not 1 <= count < length:
        raise UserError(f"{count} of {length} layers are to go at a time; give 1 to {length - 1}")


def _add(totals: dict[str, np.ndarray], sums: Mapping[str, Array]) -> None:
    for name, value in sums.items():
        totals[name] = totals.get(name, np.float64(0)) + np.asarray(value, np.float64)
