"""DimCHOP (Just CHOP, arXiv 2305.14864, section 3.2): which dimensions are masked at each step of training.

A dimension's score is the L1 norm of PLATON's scores of its weights. Masks are made anew from moving means, and what
is masked receives gradient as if it were not, so it may come back.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from chopjax.axes import AROUND, Leaf, Role, flatten, unflatten
from chopjax.chop.dimchop_config import DimChopConfig
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Params
from chopjax.models.layers import StraightThrough
from chopjax.models.parameters import declare
from chopjax.score import platon
from chopjax.score.platon import Platon
from chopjax.score.pooling import pool


class Watched(NamedTuple):
    """What DimCHOP carries from step to step, beside the optimizer's state.

    Attributes:
        step: steps done.
        platon: moving means of every weight.
        masks: 1 where kept and 0 where masked, in the next step. By axis, shaped like the axis after those around it;
            or by the path of a matrix, shaped like its stack and its outputs.
    """

    step: Int[Array, ""]
    platon: Platon
    masks: dict[str, Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class DimChop:
    """DimCHOP on one model for one phase of training.

    Attributes:
        config: mode, schedule and decays.
        model: the model that is trained, full-size.
        until: steps of the phase; its last step makes new masks in any case, so they belong to the last scores.
        targets: for `pooled`, the size to which each axis that is cut shrinks.
    """

    config: DimChopConfig
    model: ModelConfig
    until: int
    targets: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def watching(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """`optimizer`, unchanged in what it does to parameters; its state is a pair of `Watched` and its own."""
        return optax.chain(optax.GradientTransformation(self._init, self._update), optimizer)

    def apply(self, params: Params, opt_state: Any) -> tuple[Params, dict[str, StraightThrough] | None]:
        """What the forward pass is to be given: masked parameters, or masks for `models.decoder.forward`.

        By `matrix`, the gradient is to be taken with respect to the masked parameters and applied to the whole ones,
        which is what passes it straight through; a bias is masked with its matrix, so that a masked dimension is 0.

        Args:
            params: parameters in any dtype.
            opt_state: the state of the optimizer that `watching` returned.
        """
        masks = opt_state[0].masks
        if self.config.mode == "pooled":
            return params, {axis: StraightThrough(mask) for axis, mask in masks.items()}
        leaves, flat = declare(self.model), flatten(params)
        for path, mask in masks.items():
            bias = path.removesuffix("kernel") + "bias"
            over_inputs = jnp.expand_dims(mask, _inputs(leaves[path]))
            flat[path] = flat[path] * over_inputs.astype(flat[path].dtype)
            if bias in flat:
                flat[bias] = flat[bias] * mask.astype(flat[bias].dtype)
        return unflatten(flat), None

    def scores(self, state: Platon) -> dict[str, Float[Array, "..."]]:
        """The score of every dimension, shaped like its mask; higher is kept."""
        leaves, scores = declare(self.model), flatten(platon.score(state))
        if self.config.mode == "pooled":
            return {axis: pool(scores, leaves, axis) for axis in self.targets}
        return {path: scores[path].sum(axis=_inputs(leaves[path])) for path in self._shapes}

    def masks(self, state: Platon, done: Int[Array, ""]) -> dict[str, Float[Array, "..."]]:
        """The masks after `done` steps: in each matrix, or each list of an axis, the highest scores."""
        rise = (done.astype(jnp.float32) - self.config.start) / self.config.steps
        masks = {}
        for name, score in self.scores(state).items():
            ranked = self._ranked(name)
            size = math.prod(score.shape[-ranked:])
            count = kept_count(size, self._target(name, size), rise)
            masks[name] = top_mask(score.reshape(*score.shape[:-ranked], size), count).reshape(score.shape)
        return masks

    def _target(self, name: str, size: int) -> int:
        return self.targets[name] if name in self.targets else max(1, size - round(self.config.share * size))

    def _ranked(self, name: str) -> int:
        """How many trailing axes of a mask are ranked together: all outputs of a matrix; an axis by itself."""
        return 1 if name in AROUND else len(declare(self.model)[name].outputs)

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        sizes = self.model.sizes
        if self.config.mode == "pooled":
            return {axis: tuple(sizes[name] for name in (*AROUND[axis], axis)) for axis in self.targets}
        matrices = {path: leaf for path, leaf in declare(self.model).items() if leaf.role is Role.MATRIX}
        return {path: tuple(sizes[name] for name in leaf.stack + leaf.outputs) for path, leaf in matrices.items()}

    def _init(self, params: Any) -> Watched:
        ones = {name: jnp.ones(shape, jnp.float32) for name, shape in self._shapes.items()}
        return Watched(jnp.zeros((), jnp.int32), platon.init(params), ones)

    def _update(self, gradients: Any, state: Watched, params: Any = None) -> tuple[Any, Watched]:
        config, done = self.config, state.step + 1
        means = platon.update(state.platon, params, gradients, config.beta1, config.beta2)
        due = (done % config.every == 0) | (done == config.start + config.steps) | (done == self.until)
        masks = jax.lax.cond(due, lambda: self.masks(means, done), lambda: state.masks)
        return gradients, Watched(done, means, masks)


def kept_count(size: int, target: int, rise: Float[Array, ""] | float) -> Int[Array, ""]:
    """How many dimensions of `size` are kept when a share `rise` of the schedule has passed: the exponential schedule.

    size · (target / size)^rise, rounded, with `rise` held within 0 and 1: each step masks the same share of what is
    left. The masked fraction, r · (1 − exp(−k·rise)) / (1 − exp(−k)) with r its end and k = −log(1 − r), rises from 0
    to r. Just CHOP says "exponential" and prints no formula; this one needs no constant that the paper does not give.
    """
    share = jnp.clip(jnp.asarray(rise, jnp.float32), 0, 1)
    return jnp.round(size * (target / size) ** share).astype(jnp.int32)


def top_mask(score: Float[Array, "*around size"], count: Int[Array, ""] | int) -> Float[Array, "*around size"]:
    """1 at the `count` highest scores along the last axis, else 0; ties go to the lowest index, as in a plan."""
    order = jnp.argsort(-score, axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1)
    return (rank < count).astype(jnp.float32)


def kept_share(state: Watched) -> Float[Array, ""]:
    """The share of all dimensions that the masks keep."""
    masks = list(state.masks.values())
    kept = sum((jnp.sum(mask) for mask in masks), start=jnp.float32(0))
    return kept / sum(mask.size for mask in masks)


def _inputs(leaf: Leaf) -> tuple[int, ...]:
    """Where the axes lie that a product contracts."""
    return tuple(range(len(leaf.stack), len(leaf.stack) + len(leaf.inputs)))
