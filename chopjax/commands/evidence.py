"""What ranks the units of a run's source: read from the score file, taken from weights, or measured for the purpose."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from chopjax.axes import AROUND, Sizes
from chopjax.chop.build import LAYER_SCORE, WIDTHS, Scores, axes_to_score, build_plan, layers_by_score
from chopjax.chop.config import PlanConfig
from chopjax.chop.heads import head_similarity
from chopjax.commands import removal, score, trials, vocabulary
from chopjax.commands.run import DIMCHOP, Run
from chopjax.hf.reading import read_leaf
from chopjax.score import checked
from chopjax.score.aggregate import activation_scores
from chopjax.score.similarity import Kind, block_importance, removal_distances
from chopjax.score.weights import magnitude
from chopjax.sharding.mesh import replicated

ANGLES: Mapping[str, Kind] = {"angular": "angle", "angular_last_token": "last_angle"}


def scores_for(run: Run, wanted: PlanConfig) -> dict[str, np.ndarray]:
    """All scores that `build_plan` reads for a config."""
    found: dict[str, np.ndarray] = {}
    if axes_to_score(wanted, run.source.config.sizes):
        found |= widths(run, wanted)
    if layers_by_score(wanted):
        found |= layers(run, wanted)
    if wanted.merge_kv_heads:
        with run.source.unchanged():
            kernels = (read_leaf(run.source, f"layers/attention/{name}/kernel", dtype=np.float32) for name in "kv")
            found["kv_similarity"] = head_similarity(*kernels)
    if 0 < wanted.vocab < run.tokens:
        found["words"] = vocabulary.kept_words(run, score.read(run).sums["words"].sum(0), wanted.vocab)
    return found


def widths(run: Run, wanted: PlanConfig) -> Scores:
    """Scores of neurons, heads and channels by `wanted.widths_by`; `best`, not settled yet, is by activation."""
    if run.settings.dimchop.mode == "pooled":
        return checked.load(run.workdir / DIMCHOP, "run python -m chopjax.dimchop again")
    if wanted.widths_by not in ("best", "activation"):
        return _of_weights(run, wanted.widths_by)
    found: Scores = activation_scores(score.read(run).sums, wanted.over_batch, wanted.over_sequence)
    for step in range(1, wanted.iterations):
        found = _of_what_is_left(run, wanted, found, step / wanted.iterations)
    return found


def _of_what_is_left(run: Run, wanted: PlanConfig, scores: Scores, share: float) -> Scores:
    """Scores of what is left after a share of the cut: `iterations` steps of equal size (Minitron, table 12)."""
    sizes = run.source.config.sizes
    cut = axes_to_score(wanted, sizes)
    part_way = {axis: round(sizes[axis] + share * (getattr(wanted, axis) - sizes[axis])) for axis in cut}
    widths: dict[str, Any] = dict.fromkeys(WIDTHS, 0) | part_way
    plan = build_plan(PlanConfig(widths_by=wanted.widths_by, **widths), sizes, scores)
    masks = jax.device_put(trials.all_masks(plan), replicated(run.mesh))
    sums = score.activations(run, run.load(run.source), masks)
    return activation_scores(sums, wanted.over_batch, wanted.over_sequence)


def layers(run: Run, wanted: PlanConfig) -> Scores:
    """The one score that chooses layers by `wanted.layers_by` when `wanted.remove_layers` of them go."""
    by, count = wanted.layers_by, wanted.remove_layers
    if by == "block_importance":
        return {"layers": block_importance(score.read(run).sums)}
    if by in ANGLES:
        return {"blocks": removal_distances(score.read(run).sums, count, ANGLES[by])}
    if by in ("leave_one_out", "leave_block_out", "greedy"):
        return {LAYER_SCORE[by]: removal.measured(run, wanted)}
    return {"layers": _of_weights(run, by)["layers"]}


def placeholders(run: Run, wanted: PlanConfig) -> dict[str, np.ndarray]:
    """Zeros in place of every score, for what does not depend on them: which sizes a plan keeps."""
    found = zeros(run.source.config.sizes, wanted)
    if 0 < wanted.vocab < run.tokens:
        counts = np.zeros(run.source.config.sizes["vocab"], np.int64)
        found["words"] = vocabulary.kept_words(run, counts, wanted.vocab)
    return found


def zeros(sizes: Sizes, wanted: PlanConfig) -> dict[str, np.ndarray]:
    """`placeholders`, without the words that a smaller vocabulary would keep."""
    found = {axis: np.zeros([sizes[name] for name in (*AROUND[axis], axis)]) for axis in axes_to_score(wanted, sizes)}
    if layers_by_score(wanted):
        whole, count = sizes["layers"], wanted.remove_layers
        lengths = {"layers": whole, "blocks": max(1, whole - count + 1), "removed": whole}
        kind = LAYER_SCORE[wanted.layers_by]
        found[kind] = np.arange(lengths[kind], dtype=np.float64)
    return found


def _of_weights(run: Run, by: str) -> dict[str, np.ndarray]:
    """Scores of every axis, layers included, that need no activations."""
    sizes = run.source.config.sizes
    shapes = {axis: [sizes[name] for name in (*AROUND[axis], axis)] for axis in AROUND if axis != "vocab"}
    if by == "taylor":
        sums = score.read(run).sums
        return {axis: sums[f"taylor/{axis}"].sum(0) for axis in shapes}
    if by == "magnitude":
        run.check_mesh(run.source.config)
        # Whole on every process, as sums of activations are.
        pooled = jax.jit(functools.partial(magnitude, run.source.config), out_shardings=replicated(run.mesh))
        return {axis: np.asarray(value) for axis, value in pooled(run.load(run.source)).items()}
    chance = np.random.default_rng(run.settings.seed)
    return {axis: chance.random(shape) for axis, shape in shapes.items()}
