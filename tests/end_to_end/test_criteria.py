"""Every criterion from the command line, and the search for sizes under a budget, on a tiny model."""

import json
import pathlib
import re

import pytest
from end_to_end.runs import MODEL, Death, Place, done, run

from chopjax.chop.apply import chop_config
from chopjax.chop.plan import Plan
from chopjax.models.parameters import count

BUDGET = ("plan.remove_layers=0", "plan.mlp=0", "search.params=80%", "search.tolerance=0.2", "search.multiple=4")
SEARCH = (*BUDGET, "search.evaluate=3", "search.distill=2", "search.distill_steps=2", "search.q_per_kv=(2,)")


def plan(workdir: pathlib.Path) -> Plan:
    return Plan.from_json((workdir / "plan.json").read_text())


@pytest.mark.parametrize(
    "by",
    ["best", "block_importance", "angular", "angular_last_token", "leave_one_out", "leave_block_out", "greedy"]
    + ["taylor", "magnitude", "random"],
)
def test_layers_by_every_criterion(place: Place, tmp_path: pathlib.Path, by: str) -> None:
    done(place, "plan", place.arguments(tmp_path / "run", f"plan.layers_by={by}", "plan.remove_layers=2"))
    found = plan(tmp_path / "run")
    assert len(found.layers) == MODEL.layers - 2 and found.sizes["mlp"] == 12
    assert "Why these" in (tmp_path / "run" / "plan.html").read_text()
    if by in ("angular", "angular_last_token", "leave_block_out"):
        gone = sorted(set(range(MODEL.layers)) - set(found.layers))
        assert gone == list(range(gone[0], gone[0] + 2))


@pytest.mark.parametrize("by", ["taylor", "magnitude", "random"])
def test_widths_by_every_criterion(place: Place, tmp_path: pathlib.Path, by: str) -> None:
    widths = ("plan.kv_heads=1", "plan.q_per_kv=1", "plan.embed=30")
    done(place, "plan", place.arguments(tmp_path / "run", f"plan.widths_by={by}", *widths))
    assert {axis: plan(tmp_path / "run").sizes[axis] for axis in ("kv_heads", "q_per_kv", "embed", "mlp")} == {
        "kv_heads": 1, "q_per_kv": 1, "embed": 30, "mlp": 12,
    }  # fmt: skip


def test_the_best_aggregation_is_taken(place: Place, tmp_path: pathlib.Path) -> None:
    said = done(place, "plan", place.arguments(tmp_path / "run", "plan.embed=30", "plan.mlp=9")).stdout
    tried = re.findall(r"plan: mlp, embed by activation \((\w+), then (\w+)\): next_token ([\d.]+)", said)
    assert len(tried) == 4 and len({(tokens, rows) for tokens, rows, _ in tried}) == 4
    made = plan(tmp_path / "run")
    reason, by = made.reasons["mlp"], made.widths_by
    assert f"({by['over_sequence']} over the sequence, {by['over_batch']} over rows" in reason
    drawn = (tmp_path / "run" / "plan.html").read_text()
    assert f"activation score ({by['over_sequence']}, then {by['over_batch']}), by layer" in drawn
    assert "best of several criteria by next_token" in reason
    losses = {f"({tokens} over the sequence, {rows} over rows": float(loss) for tokens, rows, loss in tried}
    (chosen,) = (loss for named, loss in losses.items() if named in reason)
    assert chosen <= float(tried[0][2])  # the first, or one that clearly beats it


def test_the_search_meets_its_budget_and_goes_on_where_it_was_cut_off(place: Place, tmp_path: pathlib.Path) -> None:
    arguments = place.arguments(tmp_path / "run", *SEARCH)
    # The first candidate saves once, at its last step; the second dies there.
    ended = run(place, "plan", arguments, death=Death("chopjax.train.checkpoints:Checkpoints.save", 2))
    assert ended.status < 0
    again = done(place, "plan", arguments).stdout
    assert "trials: done before, skipped" in again and "train: done before, skipped" in again
    found = json.loads((tmp_path / "run" / "search.json").read_text())
    lines = found["candidates"]
    assert len(lines) == 3 and [line["distilled"] is not None for line in lines] == [True, True, False]
    assert [line["loss"] for line in lines] == sorted(line["loss"] for line in lines)
    best = min(lines[:2], key=lambda line: line["distilled"])
    assert lines[found["chosen"]] == best
    assert {axis: plan(tmp_path / "run").sizes[axis] for axis in best["sizes"]} == best["sizes"]
    assert all(0.6 * count(MODEL) <= line["parameters"] <= 0.8 * count(MODEL) for line in lines)


QUESTIONS = [
    {"context": "Water runs", "choices": ["down", "up the hill"], "answer": 0},
    {"context": ["The sun", "The moon"], "choices": [" sets", " sets"], "answer": 1},
]
HOOK = """
def depth_of_what_is_left(config, params):
    return float(config.layers - params["layers"]["mlp"]["up"]["kernel"][0].sum() * 1e-3)
"""


@pytest.fixture
def questions(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS))
    return file


def test_any_metric_chooses_layers(place: Place, tmp_path: pathlib.Path, questions: pathlib.Path) -> None:
    (tmp_path / "my_metric.py").write_text(HOOK)
    metrics = {"kl": "greedy", f"choices:{questions}": "leave_block_out", "json:JSONDecoder": "leave_one_out"}
    for number, (metric, by) in enumerate(metrics.items()):
        wanted = (f"plan.metric={metric}", f"plan.layers_by={by}", "plan.remove_layers=2")
        ended = run(place, "plan", place.arguments(tmp_path / str(number), *wanted))
        if metric.startswith("json"):
            assert ended.status != 0
            continue
        assert ended.status == 0, ended.stderr
        assert len(plan(tmp_path / str(number)).layers) == MODEL.layers - 2
        assert json.loads((tmp_path / str(number) / "removal.json").read_text())["metric"] == metric


def test_evaluation_answers_questions(place: Place, tmp_path: pathlib.Path, questions: pathlib.Path) -> None:
    few = ("train.steps=1", "train.warmup_steps=0", f"evaluate.choices=('{questions}',)")
    done(place, "train", place.arguments(tmp_path / "run", *few))
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {name: line["choices"]["questions"]["items"] for name, line in found.items()} == {
        "teacher": 2, "chopped": 2, "healed": 2,
    }  # fmt: skip


def test_the_search_merges_heads_for_a_smaller_cache(place: Place, tmp_path: pathlib.Path) -> None:
    space = ("search.kv_cache=half", "search.layers=(4,)", "search.multiple=4")
    budget = (*BUDGET[:2], *space, "plan.merge_kv_heads=True")
    done(place, "chop", place.arguments(tmp_path / "run", *budget, "search.evaluate=2", "search.distill=0"))
    found = plan(tmp_path / "run")
    assert found.sizes["kv_heads"] == MODEL.kv_heads // 2
    assert [edit.name for edit in found.edits] == ["merge_kv_heads"]


def test_what_cannot_be_is_said_before_anything_is_written(place: Place, tmp_path: pathlib.Path) -> None:
    cases = {
        ("search.params=60k",): "plan.remove_layers is set, but search is to choose the sizes",
        (*BUDGET, "search.params=1000"): "nearest",
        (*BUDGET, "search.params=7 apples"): "search.params is '7 apples'",
        (*BUDGET[:2], "search.chip=v5e"): "search.chip = 1 x v5e: the source meets that as it is",
        ("plan.layers_by=greedy", "plan.remove_layers=4"): "plan.remove_layers: 4 of 4 layers",
        ("plan.kv_heads=1", "plan.merge_kv_heads=True", "plan.q_per_kv=9"): "plan.q_per_kv: 9 is more than the 4",
    }
    for number, (given, said) in enumerate(cases.items()):
        ended = run(place, "train", place.arguments(tmp_path / str(number), *given))
        assert (ended.status, said in ended.stderr, ended.stderr.count("\n")) == (2, True, 1), ended
        assert not (tmp_path / str(number)).exists()


def test_widths_shrink_in_steps(place: Place, tmp_path: pathlib.Path) -> None:
    steps = {"plan.embed": 24, "plan.mlp": 10, "plan.iterations": 3}
    arguments = place.arguments(tmp_path / "run", *(f"{name}={value}" for name, value in steps.items()))
    done(place, "plan", arguments)
    found = plan(tmp_path / "run")
    assert (found.sizes["embed"], found.sizes["mlp"]) == (24, 10)
    # What went in an earlier step scores nothing afterwards, so it never comes back; only the last step says how many.
    done(place, "plan", [*arguments, "--config.plan.iterations=1"])
    assert found.kept["mlp"].tolist() != plan(tmp_path / "run").kept["mlp"].tolist()


def test_two_hosts_score_different_rows_and_one_plans_from_both(place: Place, tmp_path: pathlib.Path) -> None:
    files = []
    for skip in (0, 4):
        workdir = tmp_path / str(skip)
        done(place, "score", place.arguments(workdir, "score.rows=4", f"score.skip={skip}"))
        files.append(str(workdir / "scores" / "scores.safetensors"))
    by = "plan.widths_by=activation"  # `best` tries aggregations on rows after the run's own
    done(place, "plan", place.arguments(tmp_path / "both", f"score.files={tuple(files)}", by))
    done(place, "plan", place.arguments(tmp_path / "at-once", "score.rows=8", by))
    both, at_once = plan(tmp_path / "both"), plan(tmp_path / "at-once")
    assert both.kept["mlp"].tolist() == at_once.kept["mlp"].tolist()
    twice = run(place, "plan", place.arguments(tmp_path / "twice", f"score.files={(files[0], files[0])}"))
    assert twice.status == 2 and twice.stderr.count("\n") == 1, twice


@pytest.mark.parametrize("by", ["taylor", "leave_one_out"])
def test_a_search_measures_what_its_criterion_for_layers_needs(place: Place, tmp_path: pathlib.Path, by: str) -> None:
    found = (*BUDGET, "search.evaluate=2", "search.distill=0", f"plan.layers_by={by}", "search.layers=(2,3)")
    done(place, "plan", place.arguments(tmp_path / "run", *found, "search.params=60%"))
    assert plan(tmp_path / "run").sizes["layers"] < MODEL.layers


def test_budgets_are_for_what_comes_out(place: Place, tmp_path: pathlib.Path) -> None:
    space = (
        "search.layers=(4,)",
        "search.kv_heads=(1,)",
        "search.embed=(36,)",
        "search.mlp=(12,16,20)",
        "search.q_per_kv=(2,)",
    )
    wanted = (*BUDGET, *space, "plan.merge_kv_heads=True", "plan.vocab=300", "search.params=90%")
    done(place, "chop", place.arguments(tmp_path / "run", *wanted, "search.evaluate=2", "search.distill=0"))
    found = json.loads((tmp_path / "run" / "search.json").read_text())
    student = chop_config(MODEL, plan(tmp_path / "run"))
    assert (student.kv_heads, student.q_per_kv, student.vocab) == (1, 4, 300)
    assert found["candidates"][found["chosen"]]["parameters"] == count(student) <= 0.9 * count(MODEL)


def test_what_files_hold_decides(place: Place, tmp_path: pathlib.Path, questions: pathlib.Path) -> None:
    done(place, "score", place.arguments(tmp_path / "host", "score.rows=4"))
    file = tmp_path / "host" / "scores" / "scores.safetensors"
    arguments = place.arguments(tmp_path / "run", f"score.files=('{file}',)", "plan.layers_by=leave_block_out")
    done(place, "plan", [*arguments, f"--config.plan.metric=choices:{questions}"])
    done(place, "score", place.arguments(tmp_path / "host", "score.rows=8"))
    assert "score: made again" in done(place, "plan", [*arguments, f"--config.plan.metric=choices:{questions}"]).stdout
    questions.write_text(json.dumps(QUESTIONS[0]) + "\n")
    again = done(place, "plan", [*arguments, f"--config.plan.metric=choices:{questions}"]).stdout
    assert "removal: made again" in again and "plan: made again" in again
    lacking = run(place, "plan", [*arguments, "--config.plan.widths_by=taylor"])
    assert (lacking.status, "lacks taylor" in lacking.stderr) == (2, True), lacking


def test_settings_that_could_not_be_followed_later_are_refused_at_once(place: Place, tmp_path: pathlib.Path) -> None:
    cases = {
        ("plan.refit=True", "score.rows=4"): "which cannot be halved",
        ("plan.kv_heads=1", "plan.merge_kv_heads=True", "train.steps_before_chop=2"): "moments cannot follow",
        (*SEARCH, "plan.refit=True", "train.steps_before_chop=2", "score.rows=8"): "moments cannot follow",
        (*SEARCH, "dimchop.mode=matrix"): "is for given sizes",
        (*SEARCH, "plan.layers_by=middle", "search.layers=(1,2)"): "layers",
        (
            *SEARCH,
            "plan.merge_kv_heads=True",
            "mesh.tensor=2",
            "mesh.fallbacks=('vocab',)",
            "search.kv_heads=(1,)",
        ): "kv_heads",
        ("score.files=('nowhere',)",): "no such score file",
    }
    for number, (given, said) in enumerate(cases.items()):
        ended = run(place, "plan", place.arguments(tmp_path / str(number), *given), devices=2 if number == 5 else 1)
        assert (ended.status, said in ended.stderr, ended.stderr.count("\n")) == (2, True, 1), (given, ended)
        assert not (tmp_path / str(number)).exists()
    none_left = run(place, "plan", place.arguments(tmp_path / "skip", "score.skip=100000"))
    assert (none_left.status, "score.skip is 100000" in none_left.stderr) == (2, True), none_left


def test_a_refit_takes_as_many_rows_as_are_asked_for_now(place: Place, tmp_path: pathlib.Path) -> None:
    arguments = place.arguments(tmp_path / "run", "plan.refit=True", "plan.mlp=0", "plan.layers_by=middle")
    for rows in (6, 8):
        done(place, "plan", [*arguments, f"--config.score.rows={rows}"])
        assert plan(tmp_path / "run").edits[-1].to_json()["rows"] == rows
