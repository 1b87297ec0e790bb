"""The scoring pass: by hand on a model of two channels, against float64 on others, and the same on every mesh."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chop.plans import CENTRED, ROTARY
from models.random_params import random_params
from score.statistics_of import sums_of

from chopjax.axes import unflatten
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Params, forward
from chopjax.models.parameters import shapes
from chopjax.score.activations import CHUNK, finish, score_sums
from chopjax.sharding.mesh import Constrain, make_mesh, param_shardings, place_batch, replicated
from chopjax.sharding.rules import MeshConfig

Sums = dict[str, np.ndarray]

ROOT2 = math.sqrt(2)
BY_HAND = ModelConfig(
    layers=1, embed=2, kv_heads=1, q_per_kv=1, head_dim=2, mlp=2, vocab=5, positions=8, tied=True,
    activation="relu2", gated=False, qkv_bias=True, o_bias=True, norm_eps=1e-12,
)  # fmt: skip
RIGHT, UP, LEFT, DOWN = range(4)
PLACES = ("tokens", "positions", "segment_ids")


@functools.partial(jax.jit, static_argnums=0)
def _pass(config: ModelConfig, params: Params, batch: Any, half: Any) -> Any:
    return score_sums(config, params, batch, half)


def score(config: ModelConfig, params: Params, batch: Any, half: Any = None) -> Sums:
    return jax.device_get(_pass(config, params, batch, half))


def rows_of(*documents: list[list[int]], length: int) -> dict[str, np.ndarray]:
    """Rows, each of the documents that are packed into it."""
    batch = {name: np.zeros((len(documents), length), np.int32) for name in PLACES}
    for row, packed in enumerate(documents):
        start = 0
        for segment, document in enumerate(packed):
            end = start + len(document)
            batch["tokens"][row, start:end] = document
            batch["segment_ids"][row, start:end] = segment + 1
            batch["positions"][row, start:end] = np.arange(len(document))
            start = end
    return batch


def random_rows(config: ModelConfig, lengths: list[list[int]], length: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rows_of(*([rng.integers(0, config.vocab, n).tolist() for n in row] for row in lengths), length=length)


def params_by_hand() -> Params:
    """Heads give (3, 4) to everything, attention adds (0, 5), and the MLP squares what is positive and adds nothing."""
    flat = {path: np.zeros(shape, np.float32) for path, shape in shapes(BY_HAND).items()}
    flat["embed/table"] = np.array([[5, 0], [0, 5], [-5, 0], [0, -5], [1, 2]], np.float32)
    for path in ("layers/attention_norm/scale", "layers/mlp_norm/scale", "final_norm/scale"):
        flat[path] += 1
    flat["layers/attention/v/bias"][...] = [3, 4]
    flat["layers/attention/o/bias"][...] = [0, 5]
    flat["layers/mlp/up/kernel"][0] = np.eye(2)
    return unflatten({path: jnp.asarray(value) for path, value in flat.items()})


def test_every_statistic_by_hand() -> None:
    # A row of two tokens and padding, and a row of three: each a half of its own.
    batch = rows_of([[RIGHT, UP]], [[RIGHT, LEFT, LEFT]], length=3)
    found = score(BY_HAND, params_by_hand(), batch)
    # Statistic by statistic (mean |a|, L2, variance), unit by unit, for the first row and for the second.
    root3, root5, root6 = math.sqrt(3), math.sqrt(5), math.sqrt(6)
    expected = {
        # RIGHT gives (1, 1), UP (0, 2), LEFT (0, 1).
        "mlp": [[[1 / 2, 3 / 2], [1, root5], [1 / 4, 1 / 4]], [[1 / 3, 1], [1, root3], [2 / 9, 0]]],
        # The norm of (3, 4), for every token.
        "q_per_kv": [[[5], [5 * ROOT2], [0]], [[5], [5 * root3], [0]]],
        # Before attention √2 along each direction; after it (1, 1), (0, √2) and (-1, 1).
        "embed": [
            [
                [ROOT2 / 2, ROOT2 / 2, 1 / 2, (1 + ROOT2) / 2],
                [ROOT2, ROOT2, 1, root3],
                [1 / 2, 1 / 2, 1 / 4, ((ROOT2 - 1) / 2) ** 2],
            ],
            [[ROOT2, 0, 1, 1], [root6, 0, root3, root3], [16 / 9, 0, 8 / 9, 0]],
        ],
    }
    for name, rows in expected.items():
        x = np.array(rows).reshape(2, 3, *found[name].shape[3:])
        np.testing.assert_allclose(found[name], np.stack([x, x**2], axis=2), rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(found["rows"], [1, 1])
    np.testing.assert_array_equal(found["tokens"], [2, 3])
    np.testing.assert_array_equal(found["words"], [[1, 1, 0, 0, 0], [1, 0, 2, 0, 0]])
    # (0, 5) turns RIGHT and LEFT by 45 degrees, and UP by none.
    np.testing.assert_allclose(found["cosine"][:, 0, 1], [1 + 1 / ROOT2, 3 / ROOT2], rtol=1e-6)
    np.testing.assert_allclose(found["angle"][:, 0, 1], [1 / 4, 3 / 4], atol=1e-6)
    np.testing.assert_allclose(found["last_angle"][:, 0, 1], [0, 1 / 4], atol=1e-6)


def test_a_state_that_vanishes_is_at_right_angles_to_all() -> None:
    found = score(BY_HAND, params_by_hand(), rows_of([[DOWN]], [], length=3))  # (0, -5) + (0, 5)
    assert found["cosine"][0, 0, 1] == 0
    np.testing.assert_allclose(found["angle"][0, 0, 1], 1 / 2, rtol=1e-6)


def reference(config: ModelConfig, params: Params, batch: dict[str, np.ndarray]) -> Sums:
    """The same in float64, from tapped activations."""
    activations = jax.jit(lambda batch: forward(config, params, *batch, tap=dict))(
        tuple(batch[name] for name in PLACES)
    ).taps
    full = [row for row in range(len(batch["tokens"])) if batch["segment_ids"][row].any()]
    halves = [row % 2 for row in full]

    def rows(name: str) -> list[np.ndarray]:
        """For each row [tokens, layers, ...]."""
        return [
            np.moveaxis(np.asarray(activations[name], np.float64)[:, row, batch["segment_ids"][row] > 0], 0, 1)
            for row in full
        ]

    norms = [np.stack(pair, axis=2) for pair in zip(rows("attention_norm"), rows("mlp_norm"), strict=True)]
    found = sums_of(rows("mlp_hidden"), rows("heads"), norms, halves)
    states = config.layers + 1
    found |= {name: np.zeros((2, states, states)) for name in ("cosine", "angle", "last_angle")}
    found |= {"tokens": np.zeros(2), "words": np.zeros((2, config.vocab))}
    for half, row, before, after in zip(halves, full, rows("block_input"), rows("block_output"), strict=True):
        x = np.concatenate([before, after[:, -1:]], axis=1)
        x /= np.linalg.norm(x, axis=-1, keepdims=True)
        cosine = np.clip(x @ np.swapaxes(x, 1, 2), -1, 1)
        angle = np.arccos(cosine) / np.pi
        found["cosine"][half] += cosine.sum(0)
        found["angle"][half] += angle.sum(0)
        found["last_angle"][half] += angle[-1]
        found["tokens"][half] += len(x)
        found["words"][half] += np.bincount(batch["tokens"][row, : len(x)], minlength=config.vocab)
    return found


def assert_same(found: Sums, expected: Sums, tolerance: float = 2e-5) -> None:
    assert found.keys() == expected.keys()
    tokens = float(np.max(expected["tokens"]))
    for name, value in expected.items():
        # Cosines and angles of either sign are added up, each to some 1e-6.
        least = {"cosine": 1e-6 * tokens, "angle": 1e-5 * tokens, "last_angle": 1e-5 * tokens}.get(name, 1e-6)
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=least, err_msg=name)


@pytest.mark.parametrize("config", [ROTARY, CENTRED], ids=["rotary", "centred"])
def test_agrees_with_float64_on_packed_and_padded_rows(config: ModelConfig) -> None:
    params = random_params(config)
    if config is CENTRED:  # neurons at 100 with a variance of far less than 1: a difference of squares would lose it
        mlp = params["layers"]["mlp"]
        mlp["up"] = {"bias": mlp["up"]["bias"] + 10, "kernel": mlp["up"]["kernel"] * 0.003}
        mlp["down"] = {"bias": mlp["down"]["bias"], "kernel": mlp["down"]["kernel"] * 0.01}
    length = 39
    assert length > CHUNK and length % CHUNK  # chunks and a rest
    batch = random_rows(config, [[20, 11], [length], [1], [], [9, 9, 21]], length)
    batch["positions"] %= config.positions
    expected = reference(config, params, batch)
    # The activations themselves, of two programs, agree to a rounding of 100, which is more of their variance.
    assert_same(score(config, params, batch), expected, 2e-5 if config is ROTARY else 2e-4)
    assert expected["rows"].tolist() == [3, 1]
    if config is CENTRED:
        mean, variance = expected["mlp"][1, 0, 0].mean(), expected["mlp"][1, 2, 0].mean()
        assert variance < 2e-5 * mean**2


# A batch of one shape for the tests below, so that they share one compilation.
PLAIN = ModelConfig(layers=3, embed=16, kv_heads=4, q_per_kv=3, head_dim=6, mlp=20, vocab=28, positions=16)
LENGTH = 11
HALF = np.arange(8, dtype=np.int32) % 2
ROWS: list[list[int]] = [[6, 5], [11], [3], [], [2, 9], [10], [4, 4], [11]]


def test_default_scores_average_over_the_sequence_before_the_batch() -> None:
    params, batch = random_params(PLAIN), random_rows(PLAIN, [[LENGTH]] * 8, LENGTH)
    run = jax.jit(lambda *rows: forward(PLAIN, params, *rows, tap=lambda a: a["mlp_hidden"]).taps)
    hidden = np.abs(np.asarray(run(*(batch[name] for name in PLACES)), np.float64))  # layers, batch, sequence, mlp
    ours = finish(score(PLAIN, params, batch, HALF))["mlp"]
    np.testing.assert_allclose(ours, np.sqrt((hidden.mean(2) ** 2).sum(1)), rtol=1e-5)
    assert not np.allclose(ours, np.sqrt((hidden.mean(1) ** 2).sum(1)), rtol=0.1)  # the axes interchanged
    assert not np.allclose(ours, np.sqrt((hidden**2).sum((1, 2))), rtol=0.1)  # L2 over both


def test_padding_and_blank_rows_change_nothing() -> None:
    params, batch = random_params(PLAIN), random_rows(PLAIN, ROWS, LENGTH)
    expected = score(PLAIN, params, batch, HALF)
    order = [0, 1, 2, 4, 5, 6, 7]  # without the blank row; what follows it stays in its half
    tight = {name: value[order] for name, value in batch.items()}
    longer = {name: np.pad(value, ((0, 0), (0, 3))) for name, value in tight.items()}
    longer["tokens"] = np.where(longer["segment_ids"] > 0, longer["tokens"], 3)
    assert_same(score(PLAIN, params, longer, HALF[order]), expected)


def test_packing_changes_nothing_that_is_counted_by_token() -> None:
    params = random_params(PLAIN)
    packed = random_rows(PLAIN, ROWS, LENGTH)
    documents = [
        packed["tokens"][row][packed["segment_ids"][row] == segment].tolist()
        for row, lengths in enumerate(ROWS)
        for segment in range(1, len(lengths) + 1)
    ]
    assert len(documents) == 10
    none: list[list[list[int]]] = [[]] * 3
    half = np.zeros(8, np.int32)
    parts = [documents[:5], documents[5:]]
    apart = [score(PLAIN, params, rows_of(*([d] for d in part), *none, length=LENGTH), half) for part in parts]
    whole = score(PLAIN, params, packed, half)
    for name in ("tokens", "words", "cosine", "angle"):
        np.testing.assert_allclose(apart[0][name] + apart[1][name], whole[name], rtol=1e-5, atol=1e-4)
    assert apart[0]["rows"].tolist() == [5, 0] and whole["rows"].tolist() == [7, 0]


def test_batches_add_up_and_halves_are_as_asked() -> None:
    params, batch = random_params(PLAIN), random_rows(PLAIN, ROWS, LENGTH)
    half = np.array([1, 0, 0, 1, 1, 0, 0, 1], np.int32)
    whole = score(PLAIN, params, batch, half)
    assert whole["tokens"].tolist() == [32, 33]
    parts = []
    for chosen in (half == 0, half == 1):
        own = {name: np.where(chosen[:, None], value, 0) for name, value in batch.items()}
        parts.append(score(PLAIN, params, own, np.zeros(8, np.int32)))
    together = {name: np.stack([parts[0][name][0], parts[1][name][0]]) for name in whole}
    assert_same(together, whole)


def test_bfloat16_models_are_summed_in_float32() -> None:
    params, batch = random_params(PLAIN), random_rows(PLAIN, ROWS, LENGTH)
    exact = score(PLAIN, params, batch, HALF)
    rounded = score(PLAIN, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), batch, HALF)
    assert {name: value.dtype.name for name, value in rounded.items()} == {
        name: "int32" if name == "words" else "float32" for name in exact
    }
    np.testing.assert_array_equal(rounded["tokens"], exact["tokens"])
    for axis, value in finish(rounded).items():
        np.testing.assert_allclose(value, finish(exact)[axis], rtol=0.2)


# Heads of which only the queries divide by 4.
UNEVEN = ModelConfig(layers=2, embed=24, kv_heads=3, q_per_kv=4, head_dim=4, mlp=12, vocab=20, positions=16)


def on_mesh(config: ModelConfig, params: Params, batch: dict[str, np.ndarray], shape: tuple[int, int, int]) -> Sums:
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
    fallbacks = ("kv_heads",)
    placed = jax.device_put(params, param_shardings(config, mesh, fallbacks))
    sums_of = functools.partial(score_sums, config, constrain=Constrain(mesh, fallbacks))
    rows = place_batch(mesh, batch | {"half": HALF})
    step = jax.jit(sums_of, out_shardings=replicated(mesh))
    return jax.device_get(step(placed, {name: rows[name] for name in batch}, rows["half"]))


MESHES = {"plain": (PLAIN, [(8, 1, 1), (2, 1, 4), (2, 2, 2)]), "uneven": (UNEVEN, [(1, 2, 4)])}


@pytest.mark.parametrize("case", MESHES)
def test_equal_on_every_mesh(case: str) -> None:
    config, meshes = MESHES[case]
    params, batch = random_params(config, scale=0.3), random_rows(config, ROWS, LENGTH)
    one = score(config, params, batch, HALF)
    for mesh in meshes:
        assert_same(on_mesh(config, params, batch, mesh), one)


def test_pairs_of_states_exist_for_a_chunk_of_tokens_only() -> None:
    config = ModelConfig(layers=19, embed=4, kv_heads=1, q_per_kv=1, head_dim=2, mlp=4, vocab=7, positions=256)
    length, states = 8 * CHUNK, config.layers + 1
    ints = {name: jax.ShapeDtypeStruct((1, length), jnp.int32) for name in PLACES}
    params = jax.eval_shape(lambda: random_params(config))
    text = jax.jit(lambda params, batch: score_sums(config, params, batch)).lower(params, ints).compile().as_text()
    assert text is not None
    sizes = {math.prod(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)}
    assert CHUNK * states**2 in sizes
    assert max(sizes) < length * states**2 // 2
