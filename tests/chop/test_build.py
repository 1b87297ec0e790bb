"""From scores to plans: every criterion keeps what its definition says, by hand."""

import numpy as np
import pytest

from chopjax.chop.build import LAYER_SCORE, build_plan, choose_layers
from chopjax.chop.config import PlanConfig
from chopjax.chop.edits import HeadResidual, MergeKvHeads, Refit
from chopjax.errors import UserError

SOURCE = {"layers": 5, "embed": 6, "kv_heads": 4, "q_per_kv": 2, "head_dim": 2, "mlp": 7, "vocab": 11, "positions": 9}
RNG = np.random.default_rng(0)
SCORES = {
    "embed": np.array([1.0, 5, 2, 5, 3, 0]),
    "mlp": RNG.random((5, 7)),
    "kv_heads": RNG.random((5, 4)),
    "q_per_kv": RNG.random((5, 4, 2)),
}


@pytest.mark.parametrize("by", sorted(LAYER_SCORE))
def test_layers_by_score(by: str) -> None:
    score = {
        "layers": np.array([9.0, 1, 4, 1, 7]),  # the lowest go; of equal ones the later
        "blocks": np.array([3.0, 2, 2, 5]),  # the first of the least
        "removed": np.array([3, 0, 4]),
    }[LAYER_SCORE[by]]
    kept = choose_layers(PlanConfig(layers_by=by, remove_layers=2), 5, {LAYER_SCORE[by]: score})
    assert kept.tolist() == {"layers": [0, 2, 4], "blocks": [0, 3, 4], "removed": [1, 2, 4]}[LAYER_SCORE[by]]


def test_widths_stay_in_place_and_are_those_of_the_kept_layers() -> None:
    plan = build_plan(PlanConfig(layers=(1, 4), embed=3, mlp=4, kv_heads=2, q_per_kv=1), SOURCE, SCORES)
    assert plan.kept["embed"].tolist() == [1, 3, 4]
    for row, layer in enumerate((1, 4)):
        assert plan.kept["mlp"][row].tolist() == sorted(np.argsort(-SCORES["mlp"][layer])[:4])
        heads = sorted(np.argsort(-SCORES["kv_heads"][layer])[:2])
        assert plan.kept["kv_heads"][row].tolist() == heads
        # Query heads are ranked inside the groups that stay.
        best = [[int(np.argmax(SCORES["q_per_kv"][layer, head]))] for head in heads]
        assert plan.kept["q_per_kv"][row].tolist() == best


def test_merged_heads_keep_all_query_heads_and_the_most_alike_go_together() -> None:
    alike = np.broadcast_to(np.eye(4) + np.eye(4)[[3, 2, 1, 0]] * 0.5, (5, 4, 4))
    plan = build_plan(PlanConfig(kv_heads=2, merge_kv_heads=True), SOURCE, {"kv_similarity": alike})
    [merge] = plan.edits
    assert isinstance(merge, MergeKvHeads) and merge.groups[0].tolist() == [[0, 3], [1, 2]]
    assert (plan.sizes["kv_heads"], plan.sizes["q_per_kv"]) == (2, 4) and not plan.kept


def test_edits_follow_from_the_config() -> None:
    wanted = PlanConfig(q_per_kv=1, head_residual="laco", refit=True, ridge=0.5)
    residual, fit = build_plan(wanted, SOURCE, SCORES, refit_rows=3).edits
    assert isinstance(residual, HeadResidual) and residual.sign == "laco"
    assert fit == Refit(0.5, 3)
    assert build_plan(PlanConfig(refit=True, head_residual="minitron"), SOURCE, SCORES).edits == ()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (PlanConfig(mlp=8), "plan.mlp: 8 is more than the 7"),
        (PlanConfig(layers_by="greedy", remove_layers=5), "plan.remove_layers: 5 of 5 layers"),
        (PlanConfig(kv_heads=3, merge_kv_heads=True), "cannot be merged into 3"),
        (PlanConfig(kv_heads=2, head_residual="minitron"), "plan.head_residual"),
    ],
)
def test_what_cannot_be_is_said(wanted: PlanConfig, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_plan(wanted, SOURCE, SCORES | {"removed": np.arange(5)})
