import json
import pathlib

import numpy as np
import pytest
from report.made_up_runs import metrics, middle_plan
from report.made_up_scores import scores, write
from report.pictures.painted import SIZES

from chopjax.errors import UserError
from chopjax.report.figures import ModelFigures
from chopjax.report.page import render
from chopjax.report.reader import read_run

SUMMARY = {
    "source": "org/model",
    "teacher_parameters": 135,
    "parameters": 97,
    "teacher_perplexity": 20.0,
    "chopped_perplexity": 80.0,
    "perplexity": 40.0,
    "tokens": 40_960,
    "seconds": 431.7,
}


def write_run(folder: pathlib.Path, summary: dict[str, object]) -> None:
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "plan.json").write_text(middle_plan().to_json())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics()))
    (folder / "samples.json").write_text(json.dumps([{"prompt": "Hello", "healed": "world"}]))
    (folder / "config.json").write_text(json.dumps({"seed": 3}))


def test_a_whole_folder(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path, SUMMARY)
    run = read_run(tmp_path)
    assert (run.source, run.tokens, run.seconds, run.config) == ("org/model", 40_960, 431.7, {"seed": 3})
    assert run.plan is not None and run.plan.layers == middle_plan().layers
    assert run.metrics == metrics()
    assert run.models == {
        "teacher": ModelFigures(parameters=135, perplexity=20.0),
        "chopped": ModelFigures(parameters=97, perplexity=80.0),
        "healed": ModelFigures(parameters=97, perplexity=40.0),
    }
    assert run.closed() == pytest.approx(0.5)
    assert "model → 97 parameters: 28 % smaller, 50 % of the lost" in render(run)


def test_nested_figures_come_first(tmp_path: pathlib.Path) -> None:
    nested = {"healed": {"perplexity": 41.0, "weight_bytes": 194, "of_a_later_version": 1}}
    write_run(tmp_path, SUMMARY | {"models": nested})
    assert read_run(tmp_path).models["healed"] == ModelFigures(parameters=97, perplexity=41.0, weight_bytes=194)


def test_an_empty_folder_makes_a_page(tmp_path: pathlib.Path) -> None:
    run = read_run(tmp_path)
    assert run.source == tmp_path.name and not run.models and not run.metrics and run.plan is None
    render(run)


def test_a_run_cut_off_before_healing_has_no_healed_column(tmp_path: pathlib.Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"parameters": 97, "chopped_perplexity": 80.0}))
    assert list(read_run(tmp_path).models) == ["chopped"]


def test_damage_is_said(tmp_path: pathlib.Path) -> None:
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(UserError, match=r"summary.json: not a JSON object"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "summary.json",
            '{"tokens": "many"}',
            "tokens is 'many', not a whole number of 0 or more; delete the file and",
        ),
        ("summary.json", '{"models": {"healed": {"perplexity": []}}}', "models.healed.perplexity is [], not a number"),
        ("summary.json", '{"format": 2}', "written by a newer chopjax (format 2, this one reads up to 1)"),
        (
            "samples.json",
            '[{"prompt": 3}]',
            "[0].prompt is 3, not text; delete the file and run python -m chopjax.eval",
        ),
        ("samples.json", "{}", "it is {}, not a list"),
        ("config.json", "[]", "not a JSON object; run any command of this run again"),
        ("metrics.jsonl", '{"step": 1, "loss": [2]}\n', "line 1: 'loss' is not a number; delete the line"),
        ("metrics.jsonl", '{"step": -1}\n', "line 1: step is -1, not a whole number of 0 or more; delete the line"),
        ("metrics.jsonl", '{"step": 1, "loss": 1e999}\n', "line 1: 'loss' is not a number; delete the line"),
    ],
)
def test_a_field_that_is_wrong_is_named(tmp_path: pathlib.Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_run(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / name}: ") and said in str(error.value)


def test_scores_search_and_removal(tmp_path: pathlib.Path) -> None:
    write(tmp_path, SIZES)
    run = read_run(tmp_path)
    np.testing.assert_array_equal(run.scores["mlp"], scores(SIZES)["mlp"])
    assert run.search is not None and len(run.search.candidates) == 32
    assert run.removal is not None and len(run.removal.removed) == 3


@pytest.mark.parametrize("name", ["search.json", "removal.json", "scores/scores.safetensors"])
def test_damage_to_what_the_choice_was_made_from_is_said(tmp_path: pathlib.Path, name: str) -> None:
    write(tmp_path, SIZES)
    (tmp_path / name).write_bytes(b"[]")
    with pytest.raises(UserError, match=name) as error:
        read_run(tmp_path)
    assert "\n" not in str(error.value)
