"""Closed-form refit: the output and down projections of a chopped model, fitted by least squares to the uncut one.

Layer after layer, the student's blocks run on the student's own residual stream, beside the teacher's on the teacher's.
First the output projection is fitted, so that the student's stream after attention comes near to the teacher's after
that of the layer which the student's was; then the down projection, so that its stream comes near to what the *next*
kept layer reads in the teacher. So each fit makes up for what went in the layer, for errors left by earlier fits,
and for layers removed behind it. Only channels that the student has are compared. Kernels are replaced and nothing is
added: the result has the tensors that the plain chop has.

The kernel W of a projection with inputs X and wanted outputs Y becomes

    W + (XᵀX + ridge · mean(diag XᵀX) · I)⁻¹ Xᵀ(Y − XW)

where tokens weigh the inverse of the mean square of the stream that they should have: what follows is a norm, which
sees relative errors only, and a few tokens with huge values would decide the fit otherwise. How much a projection can
be fitted without learning the calibration text by heart differs from layer to layer. So each takes the ridge with
which a fit on one half of the batches leaves the least error on the other half, and is left alone where none helps.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from chopjax.axes import flatten, unflatten
from chopjax.chop.plan import Plan
from chopjax.errors import UserError
from chopjax.models.block import Block
from chopjax.models.config import ModelConfig
from chopjax.models.constrain import RESIDUAL, Constrain, unpinned
from chopjax.models.decoder import Params, bind, places

Batch = Mapping[str, Array]
Stream = Float[Array, "batch length embed"]

# In float32, a Gram matrix cannot be told from one this share of its mean diagonal away, times its size.
_FLOOR, _TINY = float(jnp.finfo(jnp.float32).eps), float(jnp.finfo(jnp.float32).tiny)

OUTPUT, DOWN = "layers/attention/o/kernel", "layers/mlp/down/kernel"

# Ridges that are tried, as multiples of the least one.
RIDGES = (1.0, 10.0, 100.0, 1000.0)
HALVES = 2


class Sums(NamedTuple):
    """Sums over weighted tokens, which add up over batches: XᵀX, Xᵀ(Y − XW), and the squares of Y − XW."""

    gram: Float[Array, "inputs inputs"]
    cross: Float[Array, "inputs embed"]
    error: Float[Array, ""]


class Refitted(NamedTuple):
    """What `refit` gives.

    Attributes:
        params: the student's parameters, output and down projections replaced.
        before: for each layer, the squared error that is left by its output and by its down projection before each
            is fitted, as a share of the squared stream, mean over tokens.
        after: the same after each is fitted.
        ridges: the ridge of each fit; infinity where the kernel stayed.
    """

    params: Params
    before: Float[np.ndarray, "layers 2"]
    after: Float[np.ndarray, "layers 2"]
    ridges: Float[np.ndarray, "layers 2"]


def refit(
    source: tuple[ModelConfig, Params],
    student: tuple[ModelConfig, Params],
    plan: Plan,
    batches: Sequence[Batch],
    ridge: float,
    constrain: Constrain = unpinned,
) -> Refitted:
    """Fits the output and down projections of a chopped model to the uncut one.

    Computes in float32, whatever the dtype of the parameters, one layer at a time. Beside both models it holds both
    residual streams and the student's heads of one layer for all tokens, 4 · (embed + student's embed + student's
    q_heads · head_dim) bytes each, and square matrices as wide as the MLP: two, and three more while they are solved.

    Args:
        source: the uncut model.
        student: what the plan, its edits included, made of it.
        plan: says which layer and which channels of the source the student's are.
        batches: `tokens`, `positions` and `segment_ids`, int32 [batch, length]; segment 0 is padding and has no weight.
            Even and odd ones are the halves between which ridges are compared.
        ridge: the least pull towards the chopped kernel that is tried, as a share of the mean squared input; raised to
            what float32 can solve. The others are the multiples `RIDGES`.
        constrain: pins activation shardings.

    Raises:
        UserError: fewer than two batches.
    """
    if len(batches) < HALVES:
        raise UserError(
            f"plan.refit: {len(batches)} batch of calibration rows cannot be halved; "
            "raise score.rows or lower score.batch"
        )
    with jax.default_matmul_precision("highest"):
        return _refit(source, student, plan, batches, ridge, constrain)


def _refit(
    source: tuple[ModelConfig, Params],
    student: tuple[ModelConfig, Params],
    plan: Plan,
    batches: Sequence[Batch],
    ridge: float,
    constrain: Constrain,
) -> Refitted:
    config, params = student
    channels = jnp.asarray(plan.kept.get("embed", np.arange(plan.source["embed"])))
    layers = [*plan.layers, source[0].layers]
    theirs = [_embedded(*source, batch, constrain=constrain) for batch in batches]
    own = [jnp.take(x, channels, axis=-1) for x in theirs]
    if layers[0] > 0:  # the student has no block that could make up for layers before its first
        each = zip(theirs, batches, strict=True)
        theirs = [_teacher(*source, 0, layers[0], x, batch, constrain=constrain)[1] for x, batch in each]
    fits = []
    for layer, (now, following) in enumerate(zip(layers, layers[1:], strict=False)):
        heads, halves = [], _Halves()
        for index, batch in enumerate(batches):
            middle, theirs[index] = _teacher(*source, now, following, theirs[index], batch, constrain=constrain)
            part, sums = _attention(config, params, layer, own[index], middle, channels, batch, constrain=constrain)
            heads.append(part)
            halves.add(sums)
        params, fit = _replaced(params, OUTPUT, layer, halves, ridge)
        fits.append(fit)
        halves = _Halves()
        for index, batch in enumerate(batches):
            streams = own[index], heads[index], theirs[index]
            own[index], sums = _mlp(config, params, layer, *streams, channels, batch, constrain=constrain)
            halves.add(sums)
        params, fit = _replaced(params, DOWN, layer, halves, ridge)
        fits.append(fit)
        own = [_after_mlp(config, params, layer, x, constrain=constrain) for x in own]
    before, after, ridges = np.moveaxis(np.asarray(fits, np.float64).reshape(-1, 2, 3), -1, 0)
    tokens = max(1, sum(int(jnp.sum(batch["segment_ids"] > 0)) for batch in batches))
    return Refitted(params, before / tokens, after / tokens, ridges)


class _Halves:
    """Sums over even and over odd batches."""

    def __init__(self) -> None:
        self.sums: list[Sums] = []
        self._added = 0

    def add(self, sums: Sums) -> None:
        if self._added < HALVES:
            self.sums.append(sums)
        else:
            half = self._added % HALVES
            self.sums[half] = _add(self.sums[half], sums)
        self._added += 1


@functools.partial(jax.jit, donate_argnums=(0,))
def _add(total: Sums, sums: Sums) -> Sums:
    return jax.tree.map(jnp.add, total, sums)


def _replaced(params: Params, path: str, layer: int, halves: _Halves, ridge: float) -> tuple[Params, list[float]]:
    """The parameters with one layer's kernel fitted; the error before and after, and the ridge."""
    flat = flatten(params)
    flat[path], fit = _fit(flat[path], layer, halves.sums, ridge)
    return unflatten(flat), [float(value) for value in fit]


@jax.jit
def _fit(
    kernels: Float[Array, "layers *inputs embed"], layer: Int[Array, ""], halves: list[Sums], least: Float[Array, ""]
) -> tuple[Float[Array, "layers *inputs embed"], Float[Array, "3"]]:
    """The kernels with that of one layer fitted, the error before and after, and the ridge."""
    one, other = halves
    ridges = jnp.maximum(least, _FLOOR * len(one.gram)) * jnp.asarray(RIDGES, jnp.float32)

    def foreseen(ridge: Array) -> Array:
        return _change(_step(one, ridge), other) + _change(_step(other, ridge), one)

    gains = jax.lax.map(foreseen, ridges)
    gains = jnp.where(jnp.isfinite(gains), gains, jnp.inf)
    ridge = ridges[jnp.argmin(gains)]
    total = jax.tree.map(jnp.add, one, other)
    old = jax.lax.dynamic_index_in_dim(kernels, layer, keepdims=False)
    new = (old.astype(jnp.float32) + _step(total, ridge).reshape(old.shape)).astype(old.dtype)
    step = new.astype(jnp.float32) - old.astype(jnp.float32)
    change = _change(step.reshape(total.cross.shape), total)
    better = (jnp.min(gains) < 0) & (change < 0)  # which NaN is not either
    kernels = jax.lax.dynamic_update_index_in_dim(kernels, jnp.where(better, new, old), layer, 0)
    after = total.error + jnp.where(better, change, 0.0)
    return kernels, jnp.stack([total.error, after, jnp.where(better, ridge, jnp.inf)])


def _step(sums: Sums, ridge: Array) -> Float[Array, "inputs embed"]:
    """What is added to the kernel."""
    size = len(sums.gram)
    scale = jnp.trace(sums.gram) / size + _TINY
    damped = sums.gram + ridge * scale * jnp.eye(size, dtype=jnp.float32)
    factor = jax.scipy.linalg.cho_factor(damped, lower=True)
    return jax.scipy.linalg.cho_solve(factor, sums.cross)


def _change(step: Float[Array, "inputs embed"], sums: Sums) -> Float[Array, ""]:
    """By how much the squared error changes when `step` is added to the kernel."""
    return jnp.sum(step * (sums.gram @ step - 2 * sums.cross))


@functools.partial(jax.jit, static_argnames=("config", "constrain"))
def _embedded(config: ModelConfig, params: Params, batch: Batch, *, constrain: Constrain) -> Stream:
    return bind(config, params).embedded(batch["tokens"], None, constrain).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("config", "constrain"))
def _teacher(
    config: ModelConfig, params: Params, first: Any, last: Any, x: Stream, batch: Batch, *, constrain: Constrain
) -> tuple[Stream, Stream]:
    """The stream after the attention of the layer `first`, and that before the layer `last`."""

    def step(layer: Any, x: Stream) -> tuple[Stream, Stream]:
        block = _block(config, params, layer)
        middle = constrain(x + block.attention.o(_heads(config, block, layer, x, batch, constrain)), RESIDUAL)
        return middle, constrain(middle + block.mlp.down(_hidden(block, middle, constrain)), RESIDUAL)

    middle, x = step(first, x)
    return middle, jax.lax.fori_loop(first + 1, last, lambda layer, x: step(layer, x)[1], x)


@functools.partial(jax.jit, static_argnames=("config", "constrain"))
def _attention(
    config: ModelConfig,
    params: Params,
    layer: Any,
    x: Stream,
    wanted: Stream,
    channels: Array,
    batch: Batch,
    *,
    constrain: Constrain,
) -> tuple[Array, Sums]:
    """The heads of one layer, and what its output projection is fitted with."""
    block = _block(config, params, layer)
    heads = _heads(config, block, layer, x, batch, constrain)
    wanted = jnp.take(wanted, channels, axis=-1)
    inputs = heads.reshape(*heads.shape[:2], -1)
    return heads, _sums(inputs, wanted - x - block.attention.o(heads), wanted, batch, (None, None), constrain)


@functools.partial(jax.jit, static_argnames=("config", "constrain"))
def _mlp(
    config: ModelConfig,
    params: Params,
    layer: Any,
    x: Stream,
    heads: Array,
    wanted: Stream,
    channels: Array,
    batch: Batch,
    *,
    constrain: Constrain,
) -> tuple[Stream, Sums]:
    """The stream after the fitted attention, and what the down projection is fitted with."""
    block = _block(config, params, layer)
    middle = constrain(x + block.attention.o(heads), RESIDUAL)
    wanted = jnp.take(wanted, channels, axis=-1)
    hidden = _hidden(block, middle, constrain)
    return middle, _sums(hidden, wanted - middle - block.mlp.down(hidden), wanted, batch, ("mlp", None), constrain)


@functools.partial(jax.jit, static_argnames=("config", "constrain"))
def _after_mlp(config: ModelConfig, params: Params, layer: Any, x: Stream, *, constrain: Constrain) -> Stream:
    block = _block(config, params, layer)
    return constrain(x + block.mlp.down(_hidden(block, x, constrain)), RESIDUAL)


def _sums(
    inputs: Float[Array, "batch length inputs"],
    missing: Stream,
    wanted: Stream,
    batch: Batch,
    axes: tuple[str | None, ...],
    constrain: Constrain,
) -> Sums:
    valid = (batch["segment_ids"] > 0).astype(jnp.float32)
    weights = valid / (jnp.sum(wanted * wanted, axis=-1) + _TINY)
    weighted = inputs * weights[..., None]
    gram = constrain(jnp.einsum("bli,blj->ij", inputs, weighted), axes)
    cross = constrain(jnp.einsum("bli,ble->ie", weighted, missing), (axes[0], "embed"))
    return Sums(gram, cross, jnp.sum(weights * jnp.sum(missing * missing, axis=-1)))


def _heads(
    config: ModelConfig, block: Block, layer: Any, x: Stream, batch: Batch, constrain: Constrain
) -> Float[Array, "batch length kv_heads q_per_kv head_dim"]:
    where = places(config, batch["tokens"], batch["positions"], batch["segment_ids"])
    kind = jnp.asarray(config.kind_of_layer, jnp.int32)[layer]
    return block.attention.heads(block.attention_norm(x), where, kind, None, constrain)[0]


def _hidden(block: Block, x: Stream, constrain: Constrain) -> Float[Array, "batch length mlp"]:
    return constrain(block.mlp.hidden(block.mlp_norm(x)), ("batch", "length", "mlp"))


def _block(config: ModelConfig, params: Params, layer: Any) -> Block:
    """One layer's block, in float32."""
    graph, stacked = nnx.split(bind(config, params).layers)
    own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), stacked)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), own))
