"""Losses without layers against truly chopped models, the work that they take, and greedy removal by brute force."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from models.random_params import WINDOWED, random_params

from chopjax.chop.apply import chop_config, chop_params
from chopjax.chop.plan import Plan
from chopjax.errors import UserError
from chopjax.evaluate import perplexity
from chopjax.models.config import ModelConfig
from chopjax.models.constrain import unpinned
from chopjax.models.parameters import declare
from chopjax.score import candidates
from chopjax.score.removal import batch_sums, greedy, layer_evaluations, leave_out
from chopjax.sharding.mesh import Constrain, make_mesh, param_shardings, place_batch
from chopjax.sharding.rules import MeshConfig

CONFIG = dataclasses.replace(WINDOWED, layers=4, kind_of_layer=(0, 1, 0, 1))
PARAMS = random_params(CONFIG, scale=0.3)
# Packed rows: an odd number of them in the first batch, so that halves go on across batches; padding; an empty row.
DOCUMENTS = [((17,), (6, 1, 8), (9, 3)), ((2, 11), (), (17,))]


def packed(documents_of_row: Sequence[Sequence[int]], seed: int, length: int = 17) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = len(documents_of_row), length
    batch = {"tokens": rng.integers(0, CONFIG.vocab, shape).astype(np.int32)}
    batch |= {name: np.zeros(shape, np.int32) for name in ("segment_ids", "positions")}
    for row, lengths in enumerate(documents_of_row):
        segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        batch["segment_ids"][row, : len(segments)] = segments
        batch["positions"][row, : len(segments)] = np.concatenate([np.arange(0), *map(np.arange, lengths)])
    return batch


BATCHES = [packed(rows, seed) for seed, rows in enumerate(DOCUMENTS)]


def half_of(batch: dict[str, np.ndarray], first: int) -> dict[str, np.ndarray]:
    """The same batch without the rows of the other half: those are padding."""
    theirs = np.arange(len(batch["tokens"]))[:, None] % 2 != first
    return batch | {"segment_ids": np.where(theirs, 0, batch["segment_ids"])}


@functools.cache
def chopped_sums(layers: tuple[int, ...]) -> dict[str, np.ndarray]:
    """`next_token`, `kl` and `tokens` of even and of odd rows, by `evaluate.perplexity` on these layers alone."""
    plan = Plan(dict(CONFIG.sizes), {"layers": np.asarray(layers, np.int32)})
    config, params = chop_config(CONFIG, plan), chop_params(plan, declare(CONFIG), PARAMS)
    totals = {name: np.zeros(2) for name in ("next_token", "kl", "tokens")}
    rows = 0
    for batch in BATCHES:
        for half in (0, 1):
            only = half_of(batch, (half + rows) % 2)
            found = perplexity.batch_sums(config, params, only, teacher_config=CONFIG, teacher_params=PARAMS)
            for name, total in totals.items():
                total[half] += float(found[name])
        rows += len(batch["tokens"])
    return totals


@pytest.mark.parametrize(("metric", "count"), [("next_token", 1), ("kl", 1), ("next_token", 3)])
def test_equals_chopped_models_for_every_start(metric: candidates.LossMetric, count: int) -> None:
    found = leave_out(CONFIG, PARAMS, iter(BATCHES), count, metric, chunk=7)
    starts = CONFIG.layers - count + 1
    name = {1: f"without_one/{metric}", 3: f"without_block/{metric}/3"}[count]
    assert {key: value.shape for key, value in found.items()} == {
        name: (2, starts), f"dense/{metric}": (2,), "scored": (2,)
    }  # fmt: skip
    assert all(value.dtype == np.float64 for value in found.values())
    # Of the even rows 16 (one document), 8 + 2, 1 + 10 and 16 tokens predict, counted by hand.
    np.testing.assert_array_equal(found["scored"], [16 + 10 + 0, 12 + 11 + 16])
    layers = tuple(range(CONFIG.layers))
    for start in range(starts):
        expected = chopped_sums(candidates.without_block(layers, start, count))
        np.testing.assert_allclose(found[name][:, start], expected[metric], rtol=1e-5)
        np.testing.assert_array_equal(found["scored"], expected["tokens"])
    np.testing.assert_allclose(found[f"dense/{metric}"], chopped_sums(layers)[metric], rtol=1e-5, atol=1e-6)
    means = candidates.mean_losses(found, metric, count)
    np.testing.assert_allclose(means, found[name].sum(0) / found["scored"].sum())


def test_of_a_shorter_order() -> None:
    found = leave_out(CONFIG, PARAMS, BATCHES, 2, order=(0, 2, 3), chunk=7)
    for start, layers in enumerate([(3,), (0,)]):
        expected = chopped_sums(layers)["next_token"]
        np.testing.assert_allclose(found["without_block/next_token/2"][:, start], expected, rtol=1e-5)
    np.testing.assert_allclose(found["dense/next_token"], chopped_sums((0, 2, 3))["next_token"], rtol=1e-5)


@pytest.mark.parametrize("metric", ["next_token", "kl"])
def test_runs_only_the_layers_after_the_gap(metric: candidates.LossMetric) -> None:
    ran = []

    class Counting(type(unpinned)):
        def __call__(self, array: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
            if axes == ("batch", "length", "mlp"):  # pinned once in each block that runs
                jax.debug.callback(lambda: ran.append(1))
            return array

    # All four layers once; after a gap of one 3, 2, 1 and 0 more, after one of three 1 and 0; and 4 for the teacher.
    for count, expected in {1: 10, 3: 5}.items():
        ran.clear()
        leave_out(CONFIG, PARAMS, BATCHES[:1], count, metric, constrain=Counting())
        jax.effects_barrier()
        expected += 4 * (metric == "kl")
        assert len(ran) == expected == layer_evaluations(CONFIG.layers, CONFIG.layers, count, metric)
    # Half of the work of a pass for each of 32 layers and one for the whole.
    assert layer_evaluations(32, 32, 1, "next_token") == 16.5 * 32


def brute_force(remove: int, metric: str, keep: set[int]) -> tuple[list[int], list[float]]:
    left, went, losses = list(range(CONFIG.layers)), [], []
    for _ in range(remove):
        values = {}
        for layer in sorted(set(left) - keep):
            found = chopped_sums(tuple(other for other in left if other != layer))
            values[layer] = found[metric].sum() / found["tokens"].sum()
        best = min(values, key=values.__getitem__)
        left.remove(best)
        went.append(best)
        losses.append(values[best])
    return went, losses


@pytest.mark.parametrize(("metric", "keep"), [("next_token", set()), ("kl", {0, 3})])
def test_greedy_equals_brute_force(metric: candidates.LossMetric, keep: set[int]) -> None:
    remove = 2
    found = greedy(CONFIG, PARAMS, lambda: iter(BATCHES), remove, metric, keep=keep, chunk=7)
    went, losses = brute_force(remove, metric, keep)
    assert found.layers == tuple(went)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    assert greedy(CONFIG, PARAMS, lambda: iter(BATCHES), 0, metric) == ((), ())


def test_one_compilation_for_all() -> None:
    options = {"chunk": 7}
    leave_out(CONFIG, PARAMS, BATCHES, 1, **options)
    compiled = batch_sums._cache_size()
    leave_out(CONFIG, PARAMS, BATCHES, 2, **options)
    greedy(CONFIG, PARAMS, lambda: BATCHES, 3, **options)
    assert batch_sums._cache_size() == compiled


def test_layers_that_do_nothing_go_first() -> None:
    """A layer that writes nothing leaves the loss as it is, to the bit, and is what goes first."""
    silent = jax.tree.map(lambda leaf: leaf, PARAMS)
    for part, name in (("attention", "o"), ("mlp", "down")):
        kernel = silent["layers"][part][name]["kernel"]
        silent["layers"][part][name]["kernel"] = kernel.at[2].set(0.0)
    found = leave_out(CONFIG, silent, BATCHES, chunk=7)
    np.testing.assert_array_equal(found["without_one/next_token"][:, 2], found["dense/next_token"])
    assert greedy(CONFIG, silent, lambda: BATCHES, 1, "kl", chunk=7) == ((2,), (0.0,))


DIVISIBLE = ModelConfig(layers=4, embed=16, kv_heads=4, q_per_kv=2, head_dim=4, mlp=12, vocab=36, positions=64)


def test_same_on_every_mesh() -> None:
    params = random_params(DIVISIBLE, scale=0.3)
    rows = [(17,), (6, 11), (9, 3), (4,), (), (2, 2, 2), (8, 8), (16,)]
    batches = [packed(rows, seed) for seed in (0, 1)]
    for batch in batches:
        batch["tokens"] %= DIVISIBLE.vocab
    expected = leave_out(DIVISIBLE, params, batches, 2, "kl", chunk=16)
    removed = greedy(DIVISIBLE, params, lambda: batches, 2, "kl", chunk=16)
    for shape in (MeshConfig(fsdp=8), MeshConfig(fsdp=2, tensor=4)):
        mesh = make_mesh(shape)
        constrain = Constrain(mesh)
        there = jax.device_put(params, param_shardings(DIVISIBLE, mesh)), [place_batch(mesh, b) for b in batches]
        options: dict[str, Any] = {"chunk": 16, "constrain": constrain}
        found = leave_out(DIVISIBLE, *there, 2, "kl", **options)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=f"{name} on {mesh.shape}")
        again = greedy(DIVISIBLE, there[0], lambda batches=there[1]: batches, 2, "kl", **options)
        assert again.layers == removed.layers
        np.testing.assert_allclose(again.losses, removed.losses, rtol=1e-5)


def test_refuses_what_leaves_nothing() -> None:
    with pytest.raises(UserError, match="4 of 4 layers are to go at a time; give 1 to 3"):
        leave_out(CONFIG, PARAMS, BATCHES, 4)
    with pytest.raises(UserError, match="metric is 'accuracy'"):
        leave_out(CONFIG, PARAMS, BATCHES, 1, "accuracy")  # type: ignore[arg-type]
    blank = {name: value * 0 for name, value in BATCHES[0].items()}
    for batches in ([], [blank]):
        with pytest.raises(UserError, match="no token to score"):
            leave_out(CONFIG, PARAMS, batches, chunk=7)


def test_broken_weights_are_refused() -> None:
    broken = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), PARAMS)
    with pytest.raises(UserError, match="the loss is not finite whichever layer goes"):
        greedy(CONFIG, broken, lambda: BATCHES, 1, chunk=7)


def test_halves_go_on_across_batches() -> None:
    apart = [leave_out(CONFIG, PARAMS, [batch], chunk=7) for batch in (BATCHES[1], BATCHES[1])]
    whole = leave_out(CONFIG, PARAMS, [BATCHES[1], BATCHES[1]], chunk=7)
    # The second batch begins with an odd row, so its halves change places.
    for name in whole:
        np.testing.assert_allclose(whole[name], apart[0][name] + apart[1][name][::-1], rtol=1e-12)
    named = [BATCHES[1] | {"half": np.array([1, 0, 1], np.int32)}]
    for name, value in leave_out(CONFIG, PARAMS, named, chunk=7).items():
        np.testing.assert_array_equal(value, apart[0][name][::-1])


def test_documents_without_targets_count_as_padding() -> None:
    batch = BATCHES[0]
    first = batch["segment_ids"] == 1
    found, wanted = (
        leave_out(CONFIG, PARAMS, [batch | change], metric="next_token", chunk=7)
        for change in ({"targets": first}, {"targets": first | True, "segment_ids": first.astype(np.int32)})
    )
    assert found["scored"].sum() == 16 + 5 + 8
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
