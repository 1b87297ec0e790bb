import dataclasses
import math

import numpy as np
from report.pictures.painted import SIZES, measured_run, painted, without

from chopjax.chop.plan import Plan
from chopjax.report.pictures.distributions import describe, lowest_kept, pictures, split
from chopjax.report.pictures.widths import Widths, measured, stability
from chopjax.report.run import Run
from chopjax.score.aggregate import activation_scores
from chopjax.score.stability import split_half


def widths() -> dict[str, Widths]:
    return {one.axis: one for one in measured(measured_run())}


def test_scores_are_those_of_the_file() -> None:
    expected = activation_scores(measured_run().scores)
    found = widths()
    assert list(found) == ["mlp", "q_per_kv", "kv_heads", "embed"]
    np.testing.assert_array_equal(found["mlp"].scores, expected["mlp"])
    np.testing.assert_array_equal(found["q_per_kv"].scores, expected["q_per_kv"].reshape(9, 20))
    np.testing.assert_array_equal(found["embed"].scores, expected["embed"][None])


def planned(**by: str) -> Run:
    """The run with what its plan says of the scores it was made from, under a config that left that open."""
    run = measured_run()
    assert run.plan is not None
    config = {"plan": {"widths_by": "best", "over_batch": "l2", "over_sequence": "mean", "iterations": 1}}
    return dataclasses.replace(run, plan=dataclasses.replace(run.plan, widths_by=by), config=config)


def test_scores_are_aggregated_as_the_plan_was() -> None:
    run = planned(scores="activation", over_batch="mean", over_sequence="var", iterations="1")
    expected = activation_scores(run.scores, "mean", "var")
    np.testing.assert_array_equal(measured(run)[0].scores, expected["mlp"])
    assert stability(run) == split_half(run.scores, "mean", "var")
    mlp = pictures(run)[0]
    assert mlp.reason.endswith(
        "By activations on calibration text: variance over the tokens of a row, then mean over rows."
    )
    assert mlp.description.startswith("Activation score (var, then mean) of MLP neurons")
    assert painted(mlp)[0].axes[1].get_title() == "activation score (var, then mean), by layer"


def test_captions_say_what_is_not_known_or_not_shown() -> None:
    assert "it does not say" in pictures(planned())[0].reason
    first = pictures(planned(scores="activation", over_batch="mean", over_sequence="l2", iterations="3"))[0].reason
    assert "before the first of 3 steps" in first
    weights = pictures(planned(scores="magnitude"))[0].reason
    assert "The plan went by their weights; shown are activations on calibration text (mean over the tokens" in weights
    run = planned()
    assert run.plan is not None
    layers = dataclasses.replace(run, plan=Plan(SIZES, {"layers": run.plan.kept["layers"]}))
    assert pictures(layers)[0].reason.endswith("mean over the tokens of a row, then L2 norm over rows.")


def test_scores_by_dimchop_where_the_plan_was_made_by_them() -> None:
    pooled = {"mlp": np.arange(9.0 * 40).reshape(9, 40)}
    (one,) = measured(dataclasses.replace(planned(scores="dimchop"), pooled=pooled))
    np.testing.assert_array_equal(one.scores, pooled["mlp"])
    assert one.kind == "DimCHOP score" and "at the end of training with masks" in one.how


def test_scores_by_taylor_where_the_plan_was_made_by_them() -> None:
    taylor = np.arange(2.0 * 9 * 40).reshape(2, 9, 40)
    run = dataclasses.replace(measured_run(), scores={**measured_run().scores, "taylor/mlp": taylor})
    assert measured(run)[0].kind == "activation score"
    assert run.plan is not None
    (one,) = measured(dataclasses.replace(run, plan=dataclasses.replace(run.plan, widths_by={"scores": "taylor"})))
    np.testing.assert_array_equal(one.scores, taylor.sum(0))
    assert describe(one).startswith("Taylor score of MLP neurons")


def test_kept_and_dropped_are_counted_in_the_layers_that_stay() -> None:
    found = widths()
    counts = {axis: {name: len(values) for name, values in split(one).items()} for axis, one in found.items()}
    assert counts == {
        "mlp": {"kept": 210, "dropped": 70},
        "q_per_kv": {"kept": 98, "dropped": 42},
        "kv_heads": {"all": 14},
        "embed": {"kept": 20, "dropped": 4},
    }
    assert "75 % of them stay in the layers kept." in describe(found["mlp"])


def test_lowest_kept_lies_above_all_dropped() -> None:
    one = widths()["mlp"]
    lowest = lowest_kept(one)
    assert np.isnan(lowest[[3, 4]]).all() and one.stays is not None
    for layer in (0, 1, 2, 5, 6, 7, 8):
        assert lowest[layer] == np.sort(one.scores[layer])[-30]
    assert np.isnan(lowest_kept(widths()["kv_heads"])).all()


def test_marks_of_layers_and_ranks() -> None:
    mlp, _, heads, embed = (painted(picture) for picture in pictures(measured_run()))
    assert len(mlp[0].axes[1].collections) == 2  # two bands
    assert sum(len(dots.get_offsets()) for dots in heads[0].axes[1].collections) == 18
    (dropped,) = embed[0].axes[1].patches
    heights, edges, lowest = dropped.get_data()
    assert np.flatnonzero(heights > lowest).tolist() == [20, 21, 22, 23] and len(edges) == 25
    assert any(spot.text.startswith("layer 4, removed: median") for spot in mlp[1])
    assert sum(spot.text.endswith(", dropped") for spot in embed[1]) == 4


def test_dead_and_broken_units() -> None:
    scores = np.exp(np.random.default_rng(0).normal(size=(3, 20)))
    scores[0, :5] = 0
    scores[1] = math.nan
    scores[2, 3] = math.nan
    one = Widths(
        "mlp", "activation score", "activation score", "", scores, np.tile(np.arange(20) < 12, (3, 1)), np.ones(3, bool)
    )
    found = split(one)
    assert len(found["kept"]) == 12 + 11 and len(found["dropped"]) == 16 and all(v.min() > 0 for v in found.values())
    assert "21 scores are not finite." in describe(one)


def test_nothing_without_scores_or_where_all_are_zero() -> None:
    assert pictures(Run("m")) == [] and stability(Run("m")) == {}
    assert pictures(without(measured_run(), "mlp")) == []
    sums = {name: value * 0 if name in ("mlp", "embed") else value for name, value in measured_run().scores.items()}
    assert [one.axis for one in measured(Run("m", scores=sums))] == ["q_per_kv", "kv_heads"]


def test_a_plan_of_other_sizes_splits_nothing() -> None:
    plan = Plan(SIZES | {"mlp": 44}, {"mlp": np.tile(np.arange(30), (9, 1))})
    one = measured(dataclasses.replace(measured_run(), plan=plan))[0]
    assert one.stays is None and list(split(one)) == ["all"]
