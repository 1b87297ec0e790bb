"""SIGTERM to one process anywhere ends it with 0 and loses nothing; training that goes wrong ends with 1."""

import json
import pathlib
import shutil
import signal

from end_to_end import runs
from end_to_end.runs import Death

STEP, TENSOR = "chopjax.commands.watch:Watch.after", "chopjax.hf.safetensors:Writer.write"


def told(place: runs.Place, workdir: pathlib.Path, method: str, call: int, *overrides: str) -> str:
    """What a run said last that got SIGTERM, with what it left."""
    death = Death(method, call, signal=signal.SIGTERM)
    ended = runs.run(place, "heal", place.arguments(workdir, *overrides), death=death)
    assert ended.status == 0, ended.stderr
    assert "Traceback" not in ended.stderr and not (workdir / "heartbeats").exists()
    return ended.stdout.splitlines()[-1]


def test_told_while_it_trains_and_while_it_exports(
    place: runs.Place, copied: pathlib.Path, whole: pathlib.Path
) -> None:
    said = told(place, copied, STEP, 2)
    assert said == "train: told to end (SIGTERM); step 2 of 8 is saved, the same command goes on"
    assert [line["step"] for line in runs.metrics(copied)] == [1, 2]
    assert [folder.name for folder in (copied / "checkpoints").iterdir()] == ["2"]
    assert told(place, copied, TENSOR, 5) == "export: told to end (SIGTERM); the same command starts it again"
    assert not (copied / "export").exists()
    runs.done(place, "heal", place.arguments(copied))
    assert runs.metrics(copied) == runs.metrics(whole)
    assert runs.contents(copied / "export") == runs.contents(whole / "export")


def figures(workdir: pathlib.Path, step: int) -> str:
    return (workdir / "checkpoints" / str(step) / "metrics" / "metrics").read_text()


def test_told_while_it_evaluates(
    place: runs.Place, chopped: pathlib.Path, copied: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    settings = ("train.evaluate_every=4", "train.save_every=4", "train.log_every=3")
    undisturbed = pathlib.Path(shutil.copytree(chopped, tmp_path / "undisturbed"))
    runs.done(place, "heal", place.arguments(undisturbed, *settings))
    boundary = "chopjax.commands.run:Run.boundary"
    for at, step, lines in ((2, 4, [3]), (3, 4, [3]), (4, 8, [3, 4, 6, 8])):  # in the one made on resuming too
        said = told(place, copied, boundary, at, *settings)
        assert said == f"train: told to end (SIGTERM); step {step} of 8 is saved, the same command goes on"
        assert [line["step"] for line in runs.metrics(copied)] == lines
    assert "heldout_loss" not in runs.metrics(copied)[-1]
    runs.done(place, "heal", place.arguments(copied, *settings))
    assert runs.metrics(copied) == runs.metrics(undisturbed)
    assert [figures(copied, step) for step in (4, 8)] == [figures(undisturbed, step) for step in (4, 8)]
    assert runs.contents(copied / "export") == runs.contents(undisturbed / "export")


def test_told_while_a_checkpoint_loads(place: runs.Place, copied: pathlib.Path) -> None:
    told(place, copied, STEP, 2)
    death = Death("chopjax.train.checkpoints:Checkpoints.restore", 1, delay=0.01, signal=signal.SIGTERM)
    ended = runs.run(place, "heal", place.arguments(copied), death=death)
    assert (ended.status, ended.stderr) == (0, "")
    assert not (copied / "checkpoints_damaged").exists() and (copied / "checkpoints" / "2").exists()


def test_goodput_counts_across_starts(whole: pathlib.Path) -> None:
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["goodput"] == 0  # the first step compiles
    assert 0 < lines[-1]["goodput"] < 1
    record = json.loads((whole / "goodput.json").read_text())
    assert list(record["saved"]) == ["3", "6", "8"]
    seconds = [saved["seconds"] for saved in record["saved"].values()]
    assert 0 < seconds[0] < seconds[1] < seconds[2]


def test_training_that_goes_wrong_stops(place: runs.Place, copied: pathlib.Path) -> None:
    # The weights of the first step are so large that no later step has finite gradients.
    wrong = ("train.learning_rate=1e30", "train.warmup_steps=0", "train.skip_limit=3", "train.save_every=1")
    ended = runs.run(place, "heal", place.arguments(copied, *wrong))
    assert ended.status == 1
    assert ended.stderr.splitlines()[-1].startswith(
        "error: step 4: gradients were not finite in 3 steps in a row, from step 2 on; look at"
    )
    assert [(line["step"], line["skipped"]) for line in runs.metrics(copied)] == [(1, 0), (2, 1), (3, 2)]
    assert [folder.name for folder in (copied / "checkpoints").iterdir()] == ["1"]
    ended = runs.run(place, "heal", place.arguments(copied, *wrong[:2], "train.skip_limit=0"))
    assert [line["skipped"] for line in runs.metrics(copied)] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert ended.status == 1  # the weights are those of the first step still, and of no use
    assert ended.stderr.startswith("error: train: its last parameters are not finite, or too large for float32; ")
    assert "train.learning_rate" in ended.stderr and "train.skip_limit" in ended.stderr
    assert not (copied / "export").exists() and not (copied / "stages" / "export.json").exists()
