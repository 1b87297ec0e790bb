"""Repeated chopping: every round chops what the one before exported, and a run that was cut off goes on."""

import json
import pathlib

import pytest
from end_to_end.runs import MODEL, Death, Place, contents, done, run

from chopjax.commands import rounds, settings
from chopjax.errors import UserError
from chopjax.hf.checkpoint import open_checkpoint

CHANGES = ({"plan.remove_layers": 1, "plan.mlp": 16}, {"plan.remove_layers": 1, "plan.mlp": 0, "train.steps": 3})


def arguments(place: Place, workdir: pathlib.Path) -> list[str]:
    recipe = place.folder / "rounds.py"
    added = f"    config.rounds = {CHANGES!r}\n    return config\n"
    recipe.write_text(place.recipe.read_text().replace("    return config\n", added))
    return [f"--config={recipe}", f"--config.workdir={workdir}"]


@pytest.fixture(scope="module")
def whole(place: Place) -> pathlib.Path:
    workdir = place.folder / "rounds"
    done(place, "train", arguments(place, workdir))
    return workdir


def test_each_round_cuts_what_the_one_before_exported(whole: pathlib.Path) -> None:
    first, last = open_checkpoint(whole / "round-1" / "export"), open_checkpoint(whole / "export")
    assert (first.config.layers, first.config.mlp) == (MODEL.layers - 1, 16)
    assert (last.config.layers, last.config.mlp) == (MODEL.layers - 2, 16)
    figures = json.loads((whole / "rounds.json").read_text())
    assert [line["parameters"] for line in figures] == sorted((line["parameters"] for line in figures), reverse=True)
    assert figures[1]["source"] == str(whole / "round-1" / "export") != figures[1]["teacher"] == figures[0]["teacher"]


def test_a_run_cut_off_in_the_second_round_goes_on_to_the_same_end(place: Place, whole: pathlib.Path) -> None:
    workdir = place.folder / "cut-off"
    command = arguments(place, workdir)
    # The first round saves three checkpoints.
    ended = run(place, "train", command, death=Death("chopjax.train.checkpoints:Checkpoints.save", 4))
    assert ended.status < 0
    done(place, "train", command)
    assert (
        contents(workdir / "export").items()
        >= {
            name: digest for name, digest in contents(whole / "export").items() if name.endswith(".safetensors")
        }.items()
    )


def test_what_a_round_may_not_change_is_said() -> None:
    for change, said in (({"workdir": "x"}, "workdir cannot change"), ({"plan.mlps": 3}, 'did you mean "plan.mlp"')):
        with pytest.raises(UserError, match=said):
            settings.from_mapping({"rounds": (change,)})


def test_intermediate_exports_keep_all_bits() -> None:
    chosen = settings.from_mapping({"source": "a", "workdir": "w", "rounds": CHANGES})
    first, last = rounds.each(chosen, "bfloat16")
    assert (first.export.dtype, last.export.dtype) == ("float32", "bfloat16")
    assert (first.teacher, last.teacher, last.export.folder) == ("a", "a", "w/export")


@pytest.mark.parametrize(
    ("hidden", "embed", "named"),
    [({}, 0, "hidden.layer_map in round 2"), ({"layer_map": "last"}, 30, "hidden.project in round 2")],
)
def test_activations_are_not_compared_by_the_plan_of_a_later_round(hidden: dict, embed: int, named: str) -> None:
    changes = ({"plan.embed": embed}, {"plan.remove_layers": 1})
    told = {"workdir": "w", "source": "s", "hidden": {"block_output": 1.0, **hidden}, "rounds": changes}
    with pytest.raises(UserError, match=named):
        rounds.each(settings.from_mapping(told), "float32")


@pytest.mark.parametrize("rows", ["reached", "all"])
def test_rounds_that_reach_other_rows_share_no_cache_of_those_alone(rows: str) -> None:
    cache = {"kind": "top_k", "path": "shared", "rows": rows}
    chosen = settings.from_mapping({"source": "s", "workdir": "w", "cache": cache, "rounds": CHANGES})
    if rows == "all":
        assert len(rounds.each(chosen, "float32")) == 2
        return
    with pytest.raises(UserError, match="rounds: 2 reaches other rows than 1 .*cache.rows='all'"):
        rounds.each(chosen, "float32")
