"""Log-likelihoods of continuations given their contexts, packed into rows of one shape.

Where a continuation's tokens begin, and what is cut from a text that is too long, is as in lm-evaluation-harness
(`TemplateLM._encode_pair`, `TemplateLM.loglikelihood`, `HFLM._loglikelihood_tokens`).
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from chopjax.data.tokenize import Tokenizer
from chopjax.distill.losses import LossConfig, token_losses
from chopjax.errors import UserError
from chopjax.models.config import ModelConfig
from chopjax.models.constrain import Constrain, for_length, unpinned
from chopjax.models.decoder import Params, forward, unembedding

Batch = Mapping[str, np.ndarray]
NOBODY = -1


class Request(NamedTuple):
    """Token ids of a context and its continuation, of which the last `scored` are the continuation."""

    ids: list[int]
    scored: int


def encode(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], length: int) -> list[Request]:
    """Token ids of contexts with their continuations.

    Both are tokenised together, since tokens may span the boundary, and the first as many as the context alone has are
    the context. White space at its end counts as the continuation's. The tokenizer's BOS stands before where it adds
    one; before an empty context BOS or else EOS in any case.

    Args:
        tokenizer: the model's.
        pairs: context and continuation.
        length: inputs of a row; a longer pair loses the beginning of its context.

    Raises:
        UserError: a continuation that is longer than that, or has no token of its own; an empty context where the
            tokenizer names neither BOS nor EOS.
    """
    moved = [_moved(*pair) for pair in pairs]
    contexts = tokenizer.encode([context for context, _ in moved])
    wholes = tokenizer.encode([context + continuation for context, continuation in moved])
    requests = []
    for (context, continuation), before, whole in zip(moved, contexts, wholes, strict=True):
        start = _start(tokenizer, bool(context), whole)
        # What the first token follows is nothing, so it is never scored.
        scored = min(len(whole) - len(before), len(start + whole) - 1)
        ids = (start + whole)[-(length + 1) :]
        if not 0 < scored < len(ids):
            reason = "has no token of its own" if scored < 1 else f"has {scored} tokens; a row has {length}"
            raise UserError(f"the choice {continuation[:60]!r} {reason}; change the item, or give longer rows")
        requests.append(Request(ids, scored))
    return requests


def pack(requests: Sequence[Request], batch: int, length: int) -> list[Batch]:
    """Rows of `length` tokens, each filled with requests in their order as segments of its own; no request is cut.

    Returns:
        Batches of int32 `tokens`, `positions`, `segment_ids`, `labels` and `request` [batch, length]; `request` is the
        number of the request that a label scores, or `NOBODY`. The last batch is filled up with padding.
    """
    rows: list[list[int]] = []
    free = 0
    for index, request in enumerate(requests):
        if len(request.ids) - 1 > free:
            rows.append([])
            free = length
        rows[-1].append(index)
        free -= len(request.ids) - 1
    return [_stacked(requests, rows[first : first + batch], batch, length) for first in range(0, len(rows), batch)]


def log_likelihoods(
    config: ModelConfig, params: Params, batches: Sequence[Batch], requests: int, **options: Any
) -> Float[np.ndarray, "requests"]:
    """Log-likelihood of each continuation given its context, in nats, float64.

    Args:
        config: the architecture of `params`.
        params: parameters in the compute dtype, sharded in any way.
        batches: from `pack`; on several hosts, each has all of them.
        requests: number of requests that were packed.
        options: `chunk`, `vocab_tokens` and `constrain` of `chopjax.evaluate.perplexity.evaluate_rows`.

    Raises:
        UserError: a token that the model does not have.
    """
    highest = max((int(batch[name].max()) for batch in batches for name in ("tokens", "labels")), default=0)
    if highest >= config.vocab:
        raise UserError(f"the tokenizer gives token {highest}, but the model has {config.vocab}; take the model's own")
    totals = np.zeros(requests)
    # Reading what a batch gave waits for it, so that at most two are under way at a time.
    for batch, found in _one_behind(batches, functools.partial(_by_token, config, params, **options)):
        scored = batch["request"] != NOBODY
        totals += np.bincount(batch["request"][scored], np.asarray(found, np.float64)[scored], minlength=requests)
    return totals


@functools.partial(jax.jit, static_argnames=("config", "chunk", "vocab_tokens", "constrain"))
def _by_token(
    config: ModelConfig,
    params: Params,
    batch: Mapping[str, Array],
    *,
    chunk: int = 512,
    vocab_tokens: int | None = None,
    constrain: Constrain = unpinned,
) -> Float[Array, "batch length"]:
    """float32 log-likelihood of each label, held whole by each device, so that every host can read it."""
    constrain = for_length(constrain, batch["tokens"].shape[1])
    places = batch["positions"], batch["segment_ids"]
    hidden = forward(config, params, batch["tokens"], *places, constrain=constrain).hidden
    loss = LossConfig.plain(chunk)
    options: dict[str, Any] = {"vocab_tokens": vocab_tokens, "constrain": constrain}
    losses = token_losses(loss, hidden, unembedding(config, params), batch["labels"], **options)
    return constrain(-losses["next_token"], (None, None))


def _one_behind(batches: Sequence[Batch], run: Any) -> Iterator[tuple[Batch, Array]]:
    previous = None
    for batch in batches:
        found = batch, run(batch)
        if previous is not None:
            yield previous
        previous = found
    if previous is not None:
        yield previous


def _moved(context: str, continuation: str) -> tuple[str, str]:
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def _start(tokenizer: Tokenizer, context: bool, whole: Sequence[int]) -> list[int]:
    """What stands before the text itself."""
    first = tokenizer.bos
    if not context:
        first = tokenizer.eos if tokenizer.bos is None else tokenizer.bos
        if first is None:
            raise UserError("an item has an empty context, but the tokenizer names no bos_token or eos_token to begin")
    elif not tokenizer.adds_bos or first is None:
        return []
    assert first is not None
    return [] if list(whole[:1]) == [first] else [first]


def _stacked(requests: Sequence[Request], rows: Sequence[Sequence[int]], batch: int, length: int) -> Batch:
    arrays = {name: np.zeros((batch, length), np.int32) for name in ("tokens", "positions", "segment_ids", "labels")}
    arrays["request"] = np.full((batch, length), NOBODY, np.int32)
    for row, indices in enumerate(rows):
        at = 0
        for segment, index in enumerate(indices, 1):
            ids, scored = requests[index]
            end = at + len(ids) - 1
            arrays["tokens"][row, at:end], arrays["labels"][row, at:end] = ids[:-1], ids[1:]
            arrays["positions"][row, at:end], arrays["segment_ids"][row, at:end] = np.arange(end - at), segment
            arrays["request"][row, end - scored : end] = index
            at = end
    return arrays
