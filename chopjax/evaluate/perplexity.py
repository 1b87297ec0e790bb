"""Perplexity, and divergence from a teacher, over packed rows or a stream of tokens.

One jitted function gives the float32 sums of a batch; a thin loop on the host adds them up in float64. Logits exist for
one chunk of tokens at a time (`chopjax.distill.losses`).
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from chopjax.data.labels import next_token_labels
from chopjax.distill.losses import LossConfig, chunked_loss
from chopjax.distill.targets import of_batch
from chopjax.errors import UserError
from chopjax.models.block import Masks
from chopjax.models.config import ModelConfig
from chopjax.models.constrain import Constrain, for_length, unpinned
from chopjax.models.decoder import Params, forward, unembedding

Model = tuple[ModelConfig, Params]
Batch = Mapping[str, Any]
Sums = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Means over the scored tokens, each of the same weight whatever row it stands in.

    Attributes:
        nll: negative log likelihood of a token, in nats.
        perplexity: exp(nll).
        kl: KL(teacher ‖ model) of the next-token distribution, in nats; None without a teacher.
        tokens: number of tokens scored.
    """

    nll: float
    perplexity: float
    kl: float | None
    tokens: int


def evaluate_rows(
    config: ModelConfig,
    params: Params,
    batches: Iterable[Batch],
    *,
    masks: Masks | None = None,
    teacher: Model | None = None,
    temperature: float = 1.0,
    chunk: int = 512,
    vocab_tokens: int | None = None,
    constrain: Constrain = unpinned,
) -> Evaluation:
    """Perplexity over packed rows, and KL(teacher ‖ model) on the same tokens.

    A token is scored if it follows another of its own document in its row: neither padding nor the first token of a
    document counts, and of a chat only what belongs to an answer.

    Args:
        config: the architecture of `params`.
        params: parameters in the compute dtype, sharded in any way.
        batches: dicts of int32 `tokens`, `segment_ids` (0 = padding) and, unless each row is one document, `positions`,
            all [batch, length]; where only some tokens count, bool `targets` of the same shape; numpy or already on
            the mesh. Another shape compiles again.
        masks: see `batch_sums`.
        teacher: the config and parameters of a model with the same tokenizer.
        temperature: at which the KL is taken; where batches bring a teacher's targets, that of the targets.
        chunk: tokens of a batch whose logits exist at one time.
        vocab_tokens: see `chopjax.distill.losses.chunked_loss`.
        constrain: pins activation shardings by the names of their axes.

    Raises:
        UserError: no batch holds a token to score.
    """
    options: dict[str, Any] = {"chunk": chunk, "vocab_tokens": vocab_tokens, "constrain": constrain}
    sums = functools.partial(batch_sums, config, masks=masks, temperature=temperature, **options)
    teacher_config, teacher_params = teacher or (None, None)
    return _evaluation(
        sums(params=params, batch=batch, teacher_config=teacher_config, teacher_params=teacher_params)
        for batch in batches
    )


def rolling_perplexity(
    config: ModelConfig,
    params: Params,
    tokens: Int[np.ndarray, "stream"],
    window: int,
    stride: int,
    batch: int,
    *,
    targets: Bool[np.ndarray, "stream"] | None = None,
    chunk: int = 512,
    vocab_tokens: int | None = None,
    constrain: Constrain = unpinned,
) -> Evaluation:
    """Perplexity of one stream by windows of `window` inputs, each `stride` further on; see `rolling_windows`.

    Args:
        config: the architecture of `params`.
        params: parameters in the compute dtype, sharded in any way.
        tokens: the stream. To have its first token scored too, put the tokenizer's first token (BOS) before it.
        window: inputs of one forward pass.
        stride: tokens that a window scores; what is left of it is context.
        batch: windows in one forward pass, over all devices.
        targets: which tokens of the stream are scored; all but the first if None.
        chunk: as in `evaluate_rows`, like the rest.

    Raises:
        UserError: fewer than two tokens, none to score, or a window or stride that does not fit.
    """
    if window > config.positions and config.rope.kind != "dynamic":
        raise UserError(f"evaluate.window is {window}, but the model has only {config.positions} positions")
    windows = rolling_windows(np.asarray(tokens, np.int32), window, stride, targets)
    sums = functools.partial(batch_sums, config, params, chunk=chunk, vocab_tokens=vocab_tokens, constrain=constrain)
    return _evaluation(map(sums, _stacked(windows, batch)))


def rolling_windows(
    tokens: Int[np.ndarray, "stream"], window: int, stride: int, targets: Bool[np.ndarray, "stream"] | None = None
) -> Iterator[dict[str, Int[np.ndarray, "window"]]]:
    """Cuts a stream so that every token but the first is scored once, with as much context as fits.

    Of a stream with `targets`, only these are scored.

    The first window scores all its `window` labels; each later one the next `stride`, so that their context is at
    least `window - stride + 1` tokens; the last one reaches back to be full. This is `get_rolling_token_windows` of
    lm-evaluation-harness with max_seq_len = window and context_len = window - stride + 1, where the stream starts
    with the prefix token. It is also the strided perplexity of the guide "Perplexity of fixed-length models" in
    transformers for windows of `window + 1` tokens (there the label is the last token of a window, here it lies one
    beyond), but for the last window, which starts later there and has less context.

    Yields:
        `tokens`, `labels`, `segment_ids` (all 1) and `weights` (1 where the label is scored), each [window], or
        shorter if the stream is.

    Raises:
        UserError: fewer than two tokens, or not 1 <= stride <= window.
    """
    if not 1 <= stride <= window:
        raise UserError(f"evaluate.stride is {stride}: give 1 up to evaluate.window = {window}, or tokens are skipped")
    if len(tokens) < 2:
        raise UserError(f"a stream of {len(tokens)} tokens has nothing to score; give at least two")
    predictions = len(tokens) - 1
    width = min(window, predictions)
    scored = 0
    while scored < predictions:
        end = min(scored + (stride if scored else width), predictions)
        start = end - width
        weights = np.arange(start, end) >= scored
        if targets is not None:
            weights &= targets[start + 1 : end + 1]
        yield {
            "tokens": tokens[start:end],
            "labels": tokens[start + 1 : end + 1],
            "segment_ids": np.ones(width, np.int32),
            "weights": weights.astype(np.float32),
        }
        scored = end


def _stacked(windows: Iterator[dict[str, np.ndarray]], batch: int) -> Iterator[Batch]:
    """Batches of equal shape; rows of zeros, which are padding of weight 0, fill up the last one."""
    while group := list(itertools.islice(windows, batch)):
        group += [{name: np.zeros_like(value) for name, value in group[0].items()}] * (batch - len(group))
        yield {name: np.stack([row[name] for row in group]) for name in group[0]}


@functools.partial(
    jax.jit, static_argnames=("config", "teacher_config", "temperature", "chunk", "vocab_tokens", "constrain")
)
def batch_sums(
    config: ModelConfig,
    params: Params,
    batch: Batch,
    *,
    masks: Masks | None = None,
    teacher_config: ModelConfig | None = None,
    teacher_params: Params | None = None,
    temperature: float = 1.0,
    chunk: int = 512,
    vocab_tokens: int | None = None,
    constrain: Constrain = unpinned,
) -> Sums:
    """float32 sums `next_token` and `tokens`, and with a teacher `kl`, over one batch.

    Args:
        batch: int32 `tokens`, `segment_ids` and maybe `positions`, [batch, length]; with int32 `labels` and float32
            `weights` unless those are the next tokens of each document, which bool `targets` may narrow down.
        masks: see `models.decoder.forward`; of `params` alone, for all axes but `vocab`. Masks of the same axes share
            one compilation.
        temperature: by which the logits of both sides are divided for the KL, which is not scaled.
    """
    constrain = for_length(constrain, batch["tokens"].shape[1])
    if "labels" in batch:
        labels, weights = batch["labels"], batch["weights"]
    else:
        labels, weights = next_token_labels(batch["tokens"], batch["segment_ids"], batch.get("targets"))

    def run(config: ModelConfig, params: Params, masks: Masks | None = None) -> tuple[Array, Array]:
        places = batch.get("positions"), batch["segment_ids"]
        output = forward(config, params, batch["tokens"], *places, masks=masks, constrain=constrain)
        return output.hidden, unembedding(config, params)

    teacher = run(teacher_config, teacher_params) if teacher_config and teacher_params else of_batch(batch)
    kl = float(teacher is not None)
    loss = LossConfig(next_token=1.0, kl=kl, temperature=temperature, scale_by_temperature=False, chunk=chunk)
    _, parts = chunked_loss(
        loss,
        *run(config, params, masks),
        labels,
        weights,
        teacher,
        vocab_tokens=vocab_tokens,
        constrain=constrain,
    )
    sums = {"next_token": parts["next_token"], "tokens": jnp.sum(weights, dtype=jnp.float32)}
    return sums | ({"kl": parts["kl"]} if teacher else {})


def _evaluation(batches: Iterator[Sums]) -> Evaluation:
    totals: dict[str, float] = {}
    # Reading a sum waits for its batch, so that at most two batches are under way at a time.
    previous: Sums = {}
    for sums in batches:
        _add(totals, previous)
        previous = sums
    _add(totals, previous)
    tokens = totals.get("tokens", 0.0)
    if not tokens:
        raise UserError("evaluate: the held-out rows hold no token to score; give more text or a larger held-out share")
    nll = totals["next_token"] / tokens
    kl = totals["kl"] / tokens if "kl" in totals else None
    # A broken model is reported as such, by a number that JSON can hold, rather than by an overflow.
    perplexity = math.exp(min(nll, 700.0)) if math.isfinite(nll) else nll
    return Evaluation(nll, perplexity, kl, int(tokens))


def _add(totals: dict[str, float], sums: Sums) -> None:
    for name, value in sums.items():
        totals[name] = totals.get(name, 0.0) + float(value)
