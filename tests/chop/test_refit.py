"""The refit against least squares in float64, against models whose dropped units can be made up for, and on a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chop.plans import CENTRED, ROTARY
from models.random_params import random_params

from chopjax.axes import flatten, unflatten
from chopjax.chop.apply import chop_config, chop_params
from chopjax.chop.edits import MergeKvHeads
from chopjax.chop.plan import Plan
from chopjax.chop.refit import DOWN, OUTPUT, Refitted, refit
from chopjax.errors import UserError
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Params, forward, logits
from chopjax.models.parameters import declare
from chopjax.sharding.mesh import Constrain, make_mesh, param_shardings, place_batch
from chopjax.sharding.rules import MeshConfig

# Shallow, since every layer costs the same compilations.
ROTARY2 = dataclasses.replace(ROTARY, layers=2, kind_of_layer=(0, 1))
CENTRED2 = dataclasses.replace(CENTRED, layers=2, kind_of_layer=())
BOTH = pytest.mark.parametrize("config", [ROTARY2, CENTRED2], ids=["rotary", "centred"])


@functools.cache
def batches(vocab: int, seed: int = 5, rows: int = 6, length: int = 12) -> list[dict[str, jax.Array]]:
    """Two batches with two segments in each row, and padding at the end of some."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(2):
        tokens = rng.integers(0, vocab, (rows, length))
        places = np.arange(length)[None] - np.where(np.arange(length)[None] < 5, 0, 5) + np.zeros((rows, 1), int)
        segments = np.where(np.arange(length)[None] < 5, 1, 2) + np.zeros((rows, 1), int)
        segments[rows // 2 :, -3:] = 0
        batch = {"tokens": tokens, "positions": places, "segment_ids": segments}
        made.append({name: jnp.asarray(value, jnp.int32) for name, value in batch.items()})
    return made


def fitted(config: ModelConfig, params: Params, plan: Plan, ridge: float = 0.0) -> tuple[ModelConfig, Params, Refitted]:
    """The student's config, the plain chop, and its refit."""
    student, plain = chop_config(config, plan), chop_params(plan, declare(config), params)
    return student, plain, refit((config, params), (student, plain), plan, batches(config.vocab), ridge)


def all_logits(config: ModelConfig, params: Params) -> np.ndarray:
    """On text that no fit has seen."""
    batch = batches(config.vocab, seed=11)[0]
    hidden = forward(config, params, batch["tokens"], batch["positions"], batch["segment_ids"]).hidden
    return np.asarray(logits(config, params, hidden))[np.asarray(batch["segment_ids"]) > 0]


def everything(layers: int, size: int) -> np.ndarray:
    return np.tile(np.arange(size), (layers, 1))


def test_nothing_cut_nothing_changes() -> None:
    config, params = CENTRED2, random_params(CENTRED2)
    _, _, found = fitted(config, params, Plan(dict(config.sizes), {}), ridge=0.01)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), found.params, params)
    assert (found.before < 1e-10).all()


@BOTH
def test_what_kept_units_can_make_up_for_is_made_up_for(config: ModelConfig) -> None:
    """Dropped neurons are multiples of kept ones, dropped heads of kept ones too; so no logit changes, on any text."""
    flat = {path: np.array(leaf) for path, leaf in flatten(random_params(config)).items()}
    last, layers = config.mlp - 1, config.layers
    for name in ("gate", "up"):
        for kind in ("kernel", "bias"):
            path = f"layers/mlp/{name}/{kind}"
            if path in flat:  # relu2 is homogeneous of degree 2, a gated product linear in the up projection
                flat[path][..., last] = flat[path][..., 1] * (1.0 if name == "gate" else 1.5)
    for kind in ("kernel", "bias"):
        query = flat.get(f"layers/attention/q/{kind}")
        if query is not None:
            query[..., -1, :] = query[..., 0, :]
    params = unflatten({path: jnp.asarray(leaf) for path, leaf in flat.items()})
    around = (layers, config.kv_heads)
    queries = np.broadcast_to(np.arange(config.q_per_kv - 1), (*around, config.q_per_kv - 1))
    plan = Plan(dict(config.sizes), {"mlp": everything(layers, last), "q_per_kv": queries})
    student, plain, found = fitted(config, params, plan)
    wanted = all_logits(config, params)
    lost = np.abs(all_logits(student, plain) - wanted).max()
    left = np.abs(all_logits(student, found.params) - wanted).max()
    assert lost > 0.1 * np.abs(wanted).max() and left < 2e-3 * lost


@pytest.fixture(scope="module")
def example() -> tuple[Params, Plan, Params]:
    """Parameters for ROTARY2, a plan with fewer channels, neurons and query heads of its second layer, and the chop."""
    config, rng = ROTARY2, np.random.default_rng(2)
    kept = {
        "layers": np.array([1]),
        "embed": np.sort(rng.permutation(config.embed)[:9]),
        "mlp": np.sort(rng.permutation(config.mlp)[None, :7]),
        "q_per_kv": np.zeros((1, config.kv_heads, 1), int),
    }
    params, plan = random_params(config), Plan(dict(config.sizes), kept)
    return params, plan, chop_params(plan, declare(config), params)


def test_errors_fall_and_only_two_kernels_change(example: tuple[Params, Plan, Params]) -> None:
    params, plan, plain = example
    found = fitted(ROTARY2, params, plan, ridge=0.05)[2]
    assert found.before.shape == found.after.shape == (1, 2)
    assert (found.after < found.before).all() and (found.after > 0).all()
    assert flatten(found.params).keys() == flatten(plain).keys()
    for path, leaf in flatten(found.params).items():
        assert (path in (OUTPUT, DOWN)) == bool((leaf != flatten(plain)[path]).any()), path


def test_the_fit_is_ridge_regression_in_float64(example: tuple[Params, Plan, Params]) -> None:
    """The output projection of the only layer left, from activations that the decoder's tap shows."""
    params, plan, plain = example
    config, kept = ROTARY2, plan.kept["embed"]
    student, _, found = fitted(config, params, plan, ridge=0.002)
    halves = []
    for batch in batches(config.vocab):
        places = batch["tokens"], batch["positions"], batch["segment_ids"]
        valid = np.asarray(batch["segment_ids"]) > 0
        taps = []
        for one, of in ((config, params), (student, plain)):
            tapped = forward(one, of, *places, tap=lambda a: (a["block_input"], a["heads"])).taps
            taps += [np.asarray(part, np.float64)[-1][valid].reshape(valid.sum(), -1) for part in tapped]
        whole, old = (np.asarray(flatten(of)[OUTPUT][-1], np.float64) for of in (params, plain))
        wanted = (taps[0] + taps[1] @ whole.reshape(-1, config.embed))[:, kept]
        weights = 1 / np.linalg.norm(wanted, axis=1, keepdims=True)
        missing = wanted - taps[2] - taps[3] @ old.reshape(-1, len(kept))
        halves.append((weights * taps[3], weights * missing))

    def step(x: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
        gram = x.T @ x
        return np.linalg.solve(gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram)), x.T @ y)

    ridges = [0.002, 0.02, 0.2, 2.0]
    one, other = halves
    left = [
        ((other[1] - other[0] @ step(*one, ridge)) ** 2).sum() + ((one[1] - one[0] @ step(*other, ridge)) ** 2).sum()
        for ridge in ridges
    ]
    best = ridges[int(np.argmin(left))]
    np.testing.assert_allclose(found.ridges[0, 0], best, rtol=1e-6)
    x, y = (np.concatenate(parts) for parts in zip(*halves, strict=True))
    new = old.reshape(x.shape[1], -1) + step(x, y, best)
    # Float32 solves it to its precision times the condition, which is at most inputs / ridge.
    atol = 6e-8 * x.shape[1] / best
    np.testing.assert_allclose(np.asarray(flatten(found.params)[OUTPUT][0]).reshape(new.shape), new, atol=atol)
    after = y - x @ step(x, y, best)
    errors = [found.before[0, 0], found.after[0, 0]]
    np.testing.assert_allclose(errors, [(y**2).sum() / len(y), (after**2).sum() / len(y)], rtol=1e-4)


def test_what_does_not_carry_over_is_not_learnt_by_heart(example: tuple[Params, Plan, Params]) -> None:
    """A few tokens for as many inputs: where no fit helps the other half, the kernel stays."""
    params, plan, plain = example
    first = jnp.arange(6)[:, None] == 0
    few = [batch | {"segment_ids": jnp.where(first, batch["segment_ids"], 0)} for batch in batches(ROTARY2.vocab)]
    models = (ROTARY2, params), (chop_config(ROTARY2, plan), plain)
    for ridge in (1e-6, 1e-4):
        found = refit(*models, plan, few, ridge)
        stayed = np.isinf(found.ridges)[0]
        same = [bool((flatten(found.params)[path] == flatten(plain)[path]).all()) for path in (OUTPUT, DOWN)]
        assert same == stayed.tolist()
        assert (found.after <= found.before).all() and ((found.after == found.before)[0] == stayed).all()
    with pytest.raises(UserError, match="plan.refit: 1 batch .* lower score.batch"):
        refit(*models, plan, few[:1], 0.01)


def test_a_removed_layer_is_made_up_for_by_the_one_before() -> None:
    """The layer that goes adds a constant, and the one before has a neuron that is always 1."""
    config = CENTRED2
    flat = {path: np.array(leaf) for path, leaf in flatten(random_params(config)).items()}
    for path in (OUTPUT, DOWN):
        flat[path][1] = 0
    flat["layers/mlp/up/kernel"][0, :, 2], flat["layers/mlp/up/bias"][0, 2] = 0, 1
    params = unflatten({path: jnp.asarray(leaf) for path, leaf in flat.items()})
    plan = Plan(dict(config.sizes), {"layers": np.array([0])})
    student, plain, found = fitted(config, params, plan)
    constant = flat["layers/attention/o/bias"][1] + flat["layers/mlp/down/bias"][1]
    wanted = flat[DOWN][0] + np.where(np.arange(config.mlp)[:, None] == 2, constant, 0)
    np.testing.assert_allclose(flatten(found.params)[DOWN][0], wanted, atol=2e-3)
    whole = all_logits(config, params)
    lost, left = (np.abs(all_logits(student, of) - whole).max() for of in (plain, found.params))
    assert left < 2e-3 * lost


def test_padding_has_no_say(example: tuple[Params, Plan, Params]) -> None:
    params, plan, plain = example
    models, clean = ((ROTARY2, params), (chop_config(ROTARY2, plan), plain)), batches(ROTARY2.vocab)
    noisy = [
        batch | {"tokens": jnp.where(batch["segment_ids"] > 0, batch["tokens"], (batch["tokens"] + 7) % ROTARY2.vocab)}
        for batch in clean
    ]
    one, other = (refit(*models, plan, rows, 0.01) for rows in (clean, noisy))
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_merged_heads_on_a_mesh_as_on_one_device() -> None:
    config = dataclasses.replace(
        ROTARY2, embed=8, kv_heads=4, q_per_kv=1, mlp=8, vocab=24, tied=False, kind_of_layer=(0, 1)
    )
    params = random_params(config)
    merge = MergeKvHeads(np.array([[[0, 2], [1, 3]], [[0, 1], [2, 3]]]))
    plan = Plan(dict(config.sizes), {"mlp": everything(2, 6)}, edits=(merge,))
    student, plain, alone = fitted(config, params, plan, 0.01)
    assert (alone.after < alone.before).all()
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=2), jax.devices()[:4])
    placed = [jax.device_put(tree, param_shardings(of, mesh)) for of, tree in ((config, params), (student, plain))]
    rows = [place_batch(mesh, jax.tree.map(np.asarray, batch)) for batch in batches(config.vocab)]
    spread = refit((config, placed[0]), (student, placed[1]), plan, rows, 0.01, Constrain(mesh))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-4), spread.params, alone.params)
