"""plan.json: what is written is read back, and every bad plan is refused in a line that names the axis."""

import json

import numpy as np
import pytest
from chop.plans import ROTARY, plans
from hypothesis import given

from chopjax.chop.plan import Plan, check_source
from chopjax.errors import UserError


@given(plans(ROTARY))
def test_json_round_trip(plan: Plan) -> None:
    back = Plan.from_json(plan.to_json())
    assert back.sizes == plan.sizes and back.layers == plan.layers
    for axis in plan.kept:
        np.testing.assert_array_equal(back.kept[axis], plan.kept[axis])


def test_what_ranked_the_widths_is_kept() -> None:
    by = {"scores": "activation", "over_batch": "mean", "over_sequence": "l2", "iterations": "1"}
    plan = Plan(dict(ROTARY.sizes), {"embed": np.arange(4)}, widths_by=by)
    assert Plan.from_json(plan.to_json()).widths_by == by
    assert "widths_by" not in json.loads(Plan(plan.source, plan.kept).to_json())


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({"layers": []}, "kept.layers is empty"),
        ({"head_dim": [0, 1]}, "'head_dim' cannot be cut"),
        ({"layers": [0, 5]}, "outside 0..4"),
        ({"layers": [2, 1]}, "must rise"),
        ({"embed": [3, 3]}, "twice"),
        ({"embed": [0.5]}, "whole numbers"),
        ({"vocab": [2, 1]}, "kept.vocab must rise"),
        ({"mlp": [[0], [1]]}, r"not \(5,\) \(layers\)"),
        ({"layers": [0, 4], "mlp": [[0], [1, 2]]}, "unequal"),
        ({"layers": 3}, "give a list"),
        ({"layers": [0, 2**32 + 1]}, "none beyond 32 bits"),
    ],
)
def test_refusals(kept: dict, said: str) -> None:
    body = {"source": {"sizes": dict(ROTARY.sizes)}, "kept": kept}
    with pytest.raises(UserError, match=said):
        Plan.from_json(json.dumps(body))


def test_sizes_that_are_missing_or_unknown() -> None:
    with pytest.raises(UserError, match="source.sizes lacks layers"):
        Plan.from_json('{"source": {"sizes": {"mlp": 3}}, "kept": {"mlp": [[0]]}}')
    with pytest.raises(UserError, match="has 'extra', which is no axis"):
        check_source(Plan(dict(ROTARY.sizes) | {"extra": 3}, {}), ROTARY.sizes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "source is missing"),
        ("[" * 100_000, "not valid JSON"),
        ("\ufeff{}", "not valid JSON"),
        ("{}".encode("utf-16"), "not valid JSON"),
        ('{"source": {"sizes": {"layers": "x"}}, "kept": {}}', "source.sizes.layers is 'x', not a whole number"),
        ('{"source": {"sizes": {"layers": Infinity}}, "kept": {}}', "not valid JSON .Infinity is not a number"),
        ('{"source": {"sizes": {"layers": 1e400}}, "kept": {}}', "source.sizes.layers is inf, not a whole number"),
        ('{"source": {"sizes": {"layers": 1000000000000}}, "kept": {}}', "not a whole number from 1 to 2147483647"),
        ('{"source": {"sizes": {"layers": 65537}}, "kept": {}}', "source.sizes.layers is 65537, not 65536 or fewer"),
        ('{"source": {"sizes": {}}, "kept": {}, "reasons": 5}', "reasons is 5, not an object"),
        ('{"source": {"sizes": {"layers": 3}}, "kept": {"layers": [0, true]}}', "kept.layers must hold whole numbers"),
        ('{"format": 2}', r": written by a newer chopjax \(format 2, this one reads up to 1\)"),
    ],
)
def test_what_is_no_plan(text: str | bytes, said: str) -> None:
    with pytest.raises(UserError, match=f"^plan.json.*{said}"):
        Plan.from_json(text)


def test_plan_for_another_model() -> None:
    with pytest.raises(UserError, match="made for layers = 5, but the source has 6"):
        check_source(Plan(dict(ROTARY.sizes), {}), dict(ROTARY.sizes) | {"layers": 6})
