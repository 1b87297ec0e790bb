"""Merged heads and head residuals by hand, on numpy and jax alike; masks on the edited model; bad edits refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chop.plans import CENTRED, ROTARY
from models.random_params import random_params

from chopjax.axes import Leaf, flatten, unflatten
from chopjax.chop.apply import chop_config, chop_params, gather, mask, masks, split_edits
from chopjax.chop.edits import Edit, HeadResidual, MergeKvHeads, Refit
from chopjax.chop.heads import head_residual
from chopjax.chop.optimizer_state import refuse_edits
from chopjax.chop.plan import Plan
from chopjax.errors import UserError
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import forward, logits
from chopjax.models.parameters import config_mismatch, declare

LEAVES = declare(ROTARY)
# Four KV heads with two query heads each, and multi-head attention.
GROUPED = dataclasses.replace(ROTARY, kv_heads=4, q_per_kv=2)
MULTI = dataclasses.replace(CENTRED, kv_heads=5, q_per_kv=1)


def merge_plan() -> Plan:
    """Layers, merged pairs of heads, three of four query heads of each, neurons, channels and the residual of heads."""
    merge = MergeKvHeads(np.array([[[0, 3], [1, 2]], [[2, 0], [3, 1]], [[0, 1], [2, 3]]], np.int32))
    rng = np.random.default_rng(3)
    queries = np.sort([[rng.permutation(4)[:3] for _ in range(2)] for _ in range(3)], axis=-1)
    kept = {
        "layers": np.array([0, 2, 3]),
        "q_per_kv": queries,
        "mlp": np.array([rng.permutation(11)[:6] for _ in range(3)]),
        "embed": np.arange(1, 14),
    }
    residual = head_residual(
        rng.random((3, 2, 4)) + 9 * (queries[..., None, :] == np.arange(4)[:, None]).any(-1), queries, "laco"
    )
    return Plan(dict(GROUPED.sizes), kept, edits=(merge, residual))


def multi_plan() -> Plan:
    """Three of five heads, with their residual, of every second layer."""
    score = np.array([[5.0, 1, 4, 2, 3], [1, 2, 3, 4, 5]])
    kept = np.array([[0, 2, 4], [2, 3, 4]])
    edit = head_residual(score, kept, "minitron", "kv_heads")
    return Plan(dict(MULTI.sizes), {"layers": np.array([1, 3]), "kv_heads": kept}, edits=(edit,))


EXAMPLES = pytest.mark.parametrize(
    ("config", "plan"), [(GROUPED, merge_plan()), (MULTI, multi_plan())], ids=["grouped", "multi"]
)


def test_merge_by_hand() -> None:
    sizes = {**ROTARY.sizes, "layers": 1, "kv_heads": 4, "q_per_kv": 2, "head_dim": 1, "embed": 1}
    plan = Plan(sizes, {}, edits=(MergeKvHeads(np.array([[[0, 2], [1, 3]]])),))
    assert (plan.sizes["kv_heads"], plan.sizes["q_per_kv"]) == (2, 4)
    keys = np.array([1.0, 2.0, 4.0, 8.0], np.float32)
    merged = gather(keys.reshape(1, 1, 4, 1), LEAVES["layers/attention/k/kernel"], plan)
    assert merged.ravel().tolist() == [2.5, 5.0]
    assert gather(keys.reshape(1, 4, 1), LEAVES["layers/attention/v/bias"], plan).ravel().tolist() == [2.5, 5.0]
    queries = np.arange(8.0).reshape(1, 1, 4, 2, 1)
    wanted = [[0, 1, 4, 5], [2, 3, 6, 7]]  # by member, then by query head
    assert gather(queries, LEAVES["layers/attention/q/kernel"], plan)[0, 0, :, :, 0].tolist() == wanted
    out = queries.reshape(1, 4, 2, 1, 1)
    assert gather(out, LEAVES["layers/attention/o/kernel"], plan)[0, :, :, 0, 0].tolist() == wanted


@pytest.mark.parametrize(
    ("sign", "wanted"), [("minitron", [2 * 1 - 8, 2, 2 * 4 - 16, 8, 16]), ("laco", [8, 2, 16, 8, 16])]
)
def test_residual_by_hand(sign: str, wanted: list[float]) -> None:
    """Ranks are 1, 4, 16 | 8, 2 without: heads 0, 1, 2 stay, 3 and 4 go, by ranks 1: head 1, 2: head 2, 3: head 0."""
    edit = head_residual(np.array([[[3.0, 9, 4, 2, 1]]]), np.array([[[0, 1, 2]]]), sign)
    assert edit.pairs.tolist() == [[[[0, 3], [2, 4]]]]  # rank 3 with 2·3 − 3 + 1 = 4, rank 2 with 5
    sizes = {**ROTARY.sizes, "layers": 1, "kv_heads": 1, "q_per_kv": 5, "head_dim": 1, "embed": 1}
    plan = Plan(sizes, {"q_per_kv": np.array([[[0, 1, 2]]])}, edits=(edit,))
    queries = np.array([1.0, 2, 4, 8, 16], np.float32)
    for path, shape in (("q/kernel", (1, 1, 1, 5, 1)), ("q/bias", (1, 1, 5, 1))):
        leaf = LEAVES[f"layers/attention/{path}"]
        assert edit.apply(queries.reshape(shape), leaf).ravel().tolist() == wanted
        assert gather(queries.reshape(shape), leaf, plan).ravel().tolist() == wanted[:3]
    for path, shape in (("o/kernel", (1, 1, 5, 1, 1)), ("k/kernel", (1, 5, 1, 1))):
        array = queries.reshape(shape)
        assert edit.apply(array, LEAVES[f"layers/attention/{path}"]) is array


def test_residual_of_whole_heads_changes_queries_keys_and_values() -> None:
    plan, params = multi_plan(), jax.tree.map(np.asarray, random_params(MULTI))
    chopped = flatten(chop_params(plan, declare(MULTI), params))
    for path, array in flatten(params).items():
        if path.startswith("layers/attention/") and "kv_heads" in declare(MULTI)[path].axes:
            at = declare(MULTI)[path].axes.index("kv_heads")
            heads = np.moveaxis(array[1], at - 1, 0)  # ranked 0, 2, 4 | 3, 1: head 4 with 3, head 2 with 1
            wanted = heads[[0, 2, 4]]
            if "/o/" not in path:
                wanted = np.stack([heads[0], 2 * heads[2] - heads[1], 2 * heads[4] - heads[3]])
            np.testing.assert_allclose(np.moveaxis(chopped[path][0], at - 1, 0), wanted, atol=1e-6)


def test_merging_equal_heads_changes_no_logit() -> None:
    flat = flatten(jax.tree.map(np.asarray, random_params(GROUPED)))
    groups = np.array([[[0, 3], [1, 2]]] * 5)
    for path, leaf in declare(GROUPED).items():
        if "kv_heads" in leaf.axes and "q_per_kv" not in leaf.axes:
            at = leaf.axes.index("kv_heads")
            flat[path] = np.take(flat[path], [0, 1, 1, 0], axis=at)
    plan = Plan(dict(GROUPED.sizes), {}, edits=(MergeKvHeads(groups),))
    student = chop_params(plan, declare(GROUPED), unflatten(flat))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 23, (2, 6)), jnp.int32)
    whole, merged = (
        np.asarray(logits(config, params, forward(config, params, tokens).hidden))
        for config, params in ((GROUPED, unflatten(flat)), (chop_config(GROUPED, plan), student))
    )
    np.testing.assert_allclose(merged, whole, atol=2e-6 * np.abs(whole).max())


@EXAMPLES
def test_numpy_and_jax_agree_bit_for_bit(config: ModelConfig, plan: Plan) -> None:
    for dtype in (jnp.float32, jnp.bfloat16):
        params = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), random_params(config))
        on_jax = jax.jit(lambda params: chop_params(plan, declare(config), params))(params)
        on_numpy = chop_params(plan, declare(config), jax.tree.map(np.asarray, params))
        assert config_mismatch(chop_config(config, plan), {k: v.shape for k, v in flatten(on_jax).items()}) is None
        jax.tree.map(np.testing.assert_array_equal, on_jax, on_numpy)


@EXAMPLES
def test_layer_by_layer_is_all_at_once(config: ModelConfig, plan: Plan) -> None:
    leaves, params = declare(config), flatten(jax.tree.map(np.asarray, random_params(config)))
    whole = flatten(chop_params(plan, leaves, unflatten(params)))
    for path, leaf in leaves.items():
        if "layers" in leaf.axes:
            parts = [gather(params[path][[of]], leaf, plan.of_layer(layer)) for layer, of in enumerate(plan.layers)]
            np.testing.assert_array_equal(np.concatenate(parts), whole[path])


@EXAMPLES
def test_edited_then_masked_equals_chopped(config: ModelConfig, plan: Plan) -> None:
    params = jax.tree.map(np.asarray, random_params(config))
    before, rest = split_edits(plan)
    edited, edited_config = chop_params(before, declare(config), params), chop_config(config, before)
    sliced, student = chop_params(plan, declare(config), params), chop_config(config, plan)
    jax.tree.map(np.testing.assert_array_equal, chop_params(rest, declare(edited_config), edited), sliced)
    assert chop_config(edited_config, rest) == student
    with pytest.raises(ValueError, match="split_edits"):
        masks(plan)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, config.vocab, (2, 7)), jnp.int32)
    on_device = {axis: jnp.asarray(mask) for axis, mask in masks(rest).items()}
    masked = logits(edited_config, edited, forward(edited_config, edited, tokens, masks=on_device).hidden)
    wanted = np.asarray(logits(student, sliced, forward(student, sliced, tokens).hidden))
    np.testing.assert_allclose(masked, wanted, atol=2e-5 * np.abs(wanted).max())


def test_query_heads_of_merged_groups_are_shown_where_they_were() -> None:
    plan = merge_plan()
    shown = mask(plan, "q_per_kv")
    assert shown.shape == (5, 4, 2) and shown.sum() == 3 * 2 * 3 and not shown[[1, 4]].any()
    merge, kept = plan.edits[0], plan.kept["q_per_kv"]
    assert isinstance(merge, MergeKvHeads)
    for number in kept[1, 0]:  # of the third source layer, heads 2 and 0
        assert shown[2, merge.groups[1, 0, number // 2], number % 2] == 1
    assert mask(plan, "kv_heads").sum() == 3 * 4


@EXAMPLES
def test_json_round_trip(config: ModelConfig, plan: Plan) -> None:
    del config
    plan = dataclasses.replace(plan, edits=(*plan.edits, Refit(0.01, 64)))
    back = Plan.from_json(plan.to_json())
    assert back.sizes == plan.sizes and json.loads(back.to_json()) == json.loads(plan.to_json())
    assert [edit.describe() for edit in back.edits] == [edit.describe() for edit in plan.edits]
    assert "edits" not in json.loads(Plan(plan.source, plan.kept).to_json())


def test_a_refit_leaves_the_gather_and_the_masks_alone() -> None:
    plan = Plan(dict(ROTARY.sizes), {"mlp": np.tile(np.arange(4), (5, 1))})
    fitted = dataclasses.replace(plan, edits=(Refit(0.1, 8),))
    params = jax.tree.map(np.asarray, random_params(ROTARY))
    jax.tree.map(np.testing.assert_array_equal, chop_params(plan, LEAVES, params), chop_params(fitted, LEAVES, params))
    assert masks(fitted).keys() == masks(plan).keys() and split_edits(fitted)[1].kept.keys() == plan.kept.keys()


SIZES = dict(GROUPED.sizes)
QUERIES = {"q_per_kv": np.zeros((5, 4, 1), int).tolist()}
PAIRS = np.tile([[0, 1]], (5, 4, 1, 1))


@pytest.mark.parametrize(
    ("kept", "edits", "said"),
    [
        ({}, [{"edit": "fold"}], "edit 'fold' is unknown; there are merge_kv_heads"),
        ({}, [{"edit": "merge_kv_heads"}], r"edits: KeyError\('groups'\) is not known or missing"),
        ({}, 5, "plan.json: edits is 5, not a list; make the plan again"),
        ({}, [{"edit": "merge_kv_heads", "groups": [[[0, 1], [2]]]}], "groups has lists of unequal length"),
        ({}, [{"edit": "merge_kv_heads", "groups": [0, 1]}], "for each of the 5 kept layers"),
        ({}, [{"edit": "merge_kv_heads", "groups": [[[0, 1], [1, 3]]] * 5}], "every one of the 4 heads"),
        ({}, [{"edit": "merge_kv_heads", "groups": [[[0, 1]]] * 5}], "every one of the 4 heads"),
        (
            {"kv_heads": [[0]] * 5},
            [{"edit": "merge_kv_heads", "groups": [[[0, 1], [2, 3]]] * 5}],
            "drop heads or merge them",
        ),
        (QUERIES, [HeadResidual("q_per_kv", "plus", PAIRS).to_json()], "sign is 'plus'; choose minitron or laco"),
        (QUERIES, [HeadResidual("mlp", "laco", PAIRS).to_json()], "axis is 'mlp'"),
        (QUERIES, [HeadResidual("kv_heads", "laco", PAIRS).to_json()], "where one query head belongs to each"),
        ({}, [HeadResidual("q_per_kv", "laco", PAIRS).to_json()], "which is not cut"),
        (
            QUERIES,
            [HeadResidual("q_per_kv", "laco", PAIRS[:, 0]).to_json()],
            r"lists of \[kept, dropped\] for \(5, 4\)",
        ),
        (QUERIES, [HeadResidual("q_per_kv", "laco", PAIRS[..., ::-1]).to_json()], "must pair kept heads with dropped"),
        (QUERIES, [HeadResidual("q_per_kv", "laco", PAIRS + 1).to_json()], "must pair kept heads with dropped"),
        ({}, [Refit(0.1, 0).to_json()], "0 rows"),
        ({}, [Refit(-0.1, 4).to_json()], "ridge -0.1"),
        ({}, [Refit(0.1, 4).to_json(), Refit(0.1, 4).to_json()], "in the order merge_kv_heads, head_residual, refit"),
    ],
)
def test_refusals(kept: dict, edits: list, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Plan.from_json(json.dumps({"source": {"sizes": SIZES}, "kept": kept, "edits": edits}))


@pytest.mark.parametrize("edit", [merge_plan().edits[0], multi_plan().edits[0], Refit(0.1, 4)])
def test_moments_cannot_follow(edit: Edit) -> None:
    with pytest.raises(UserError, match=rf"train.steps_before_chop: .* {edit.name}; set it to 0"):
        refuse_edits(Plan(SIZES, {}, edits=(edit,)))


def test_leaves_without_heads_are_left_alone() -> None:
    for path, leaf in LEAVES.items():
        if "kv_heads" not in leaf.axes:
            assert isinstance(leaf, Leaf)
            array = np.zeros(leaf.shape(GROUPED.sizes))
            assert all(edit.apply(array, leaf) is array for edit in merge_plan().edits), path
