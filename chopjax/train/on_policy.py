"""Batches that the student writes itself: the beginning of each row, and what it goes on with."""

import math
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from chopjax.axes import flatten, unflatten
from chopjax.distill.on_policy_config import OnPolicyConfig, check_length
from chopjax.evaluate.generate import Prompts, Sampling, continued
from chopjax.models.config import ModelConfig
from chopjax.models.constrain import Constrain, unpinned
from chopjax.models.decoder import Params
from chopjax.models.parameters import declare
from chopjax.sharding.mesh import batch_sharding, replicated

Batch = dict[str, Int[Array, "batch length"] | Bool[Array, "batch length"]]


def is_sampled(seed: int, step: int, share: float) -> bool:
    """Whether the batch of a step, counted from 0, is sampled from the student.

    Sampled steps lie as evenly as they can: of any n steps in a row, n * `share` rounded up or down. Where they begin
    depends on the seed.
    """
    exact = Fraction(str(share))  # 0.1 is a tenth, so that sums of it do not drift
    shift = Fraction(random.Random(seed).random())
    return math.floor((step + 1) * exact + shift) > math.floor(step * exact + shift)


def sampled_batch(
    config: ModelConfig,
    params: Params,
    batch: Mapping[str, Array],
    key: Array,
    on_policy: OnPolicyConfig,
    constrain: Constrain = unpinned,
    compute_dtype: str = "bfloat16",
    vocab_tokens: int | None = None,
    eos: Sequence[int] = (),
) -> Batch:
    """A batch of the same shape in which the student goes on after the beginning of each row; for use under `jax.jit`.

    Of each row the first `on_policy.prompt` tokens are kept. What is drawn belongs to the segment of the last of them,
    so that earlier segments of the row are not seen, and positions go on from its. A row that is padding before the
    prompt ends has its tokens moved right, up to the end of the prompt. After a drawn `eos` there is padding: token,
    segment and position 0. So it is from the end of the prompt on where the prompt itself ends in `eos`, or the row is
    empty.

    Args:
        config: the architecture of `params`.
        params: the student's own parameters, of any dtype, sharded in any way; no gradient flows to them.
        batch: packed rows: `tokens`, `segment_ids` (0 is padding) and `positions`, int32 [batch, length]; whatever
            else there is counts for nothing.
        key: randomness. On every mesh it gives the same draws, up to rounding of the probabilities.
        on_policy: how many tokens are kept, and how the others are drawn.
        constrain: pins activations, the cache and gathered parameters to a mesh.
        compute_dtype: dtype in which the student samples, and of its cache.
        vocab_tokens: tokens of the tokenizer, where the vocabulary is padded; others are never drawn.
        eos: tokens that end a text.

    Returns:
        `tokens`, `segment_ids` and `positions` as in `batch`, and bool `targets` [batch, length]: True at the tokens
        that were drawn, and nowhere else.

    Raises:
        UserError: the prompt is as long as a row.
    """
    length = batch["tokens"].shape[1]
    check_length(on_policy, length)
    params = jax.tree.map(lambda x: jax.lax.stop_gradient(x).astype(compute_dtype), params)
    constrain = constrain.holding("length")  # one token is drawn at a time, and no length of a prompt need divide
    if on_policy.gather:
        params = _gathered(config, params, constrain)
        constrain = constrain.holding("embed")
    ending = jnp.asarray(tuple(eos), jnp.int32)
    prompts = _prompts(batch, on_policy.prompt, ending)
    sampling = Sampling(on_policy.temperature, on_policy.top_k, on_policy.top_p)
    new = length - on_policy.prompt
    drawn = continued(
        config, params, prompts, key, new, sampling, tuple(eos), vocab_tokens=vocab_tokens, constrain=constrain
    )
    ends = jnp.isin(drawn, ending).astype(jnp.int32)
    ended_before = jnp.cumsum(ends, axis=1) > ends
    written = ~(ended_before | prompts.ended[:, None])
    positions = prompts.positions[:, -1:] + 1 + jnp.arange(new, dtype=jnp.int32)[None]
    joined = {
        "tokens": (prompts.tokens, drawn),
        "segment_ids": (prompts.segment_ids, jnp.broadcast_to(prompts.segment_ids[:, -1:], drawn.shape)),
        "positions": (prompts.positions, positions),
        "targets": (jnp.zeros(prompts.tokens.shape, bool), written),
    }
    return {
        name: jnp.concatenate([kept, jnp.where(written, added, jnp.zeros_like(added))], axis=1)
        for name, (kept, added) in joined.items()
    }


def compile_sampler(
    config: ModelConfig,
    on_policy: OnPolicyConfig,
    shardings: Params,
    mesh: Mesh,
    seed: int,
    **options: Any,
) -> jax.stages.Wrapped:
    """(params, step, batch) → sampled batch, under `jax.jit` with its shardings; nothing moves from the host.

    The draws depend on the seed and the step alone, besides the parameters and the prompts, so a run that goes on from
    a checkpoint draws what it would have drawn.

    Args:
        config: the architecture of the student.
        on_policy: how it samples.
        shardings: of its parameters.
        mesh: over which the rows of a batch are spread.
        seed: of the run.
        options: of `sampled_batch`: `constrain`, `compute_dtype`, `vocab_tokens`, `eos`.
    """

    def sampler(params: Params, step: Int[Array, ""], batch: Mapping[str, Array]) -> Batch:
        key = jax.random.fold_in(jax.random.key(seed), step)
        return sampled_batch(config, params, batch, key, on_policy, **options)

    rows = batch_sharding(mesh)
    return jax.jit(sampler, in_shardings=(shardings, replicated(mesh), rows), out_shardings=rows)


def _prompts(batch: Mapping[str, Array], prompt: int, eos: Int[Array, "eos"]) -> Prompts:
    """The beginnings of the rows, padding in front; a row of padding alone, or that ends in `eos`, has ended."""
    names = ("tokens", "positions", "segment_ids")
    tokens, positions, segments = (batch[name][:, :prompt] for name in names)
    order = jnp.argsort(segments != 0, axis=1, stable=True)
    tokens, positions, segments = (jnp.take_along_axis(array, order, axis=1) for array in (tokens, positions, segments))
    return Prompts(tokens, positions, segments, (segments[:, -1] == 0) | jnp.isin(tokens[:, -1], eos))


def _gathered(config: ModelConfig, params: Params, constrain: Constrain) -> Params:
    """Parameters whole on each device, save for what is split over `tensor`."""
    # A loop over tokens would gather what is split along `embed` once a token; here it is gathered once a batch.
    leaves = declare(config)

    def whole(path: str, array: Array) -> Array:
        return constrain(array, tuple(None if name == "embed" else name for name in leaves[path].axes))

    return unflatten({path: whole(path, array) for path, array in flatten(params).items()})
