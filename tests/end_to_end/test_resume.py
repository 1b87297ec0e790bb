"""Killed anywhere and started again, a run learns the same, bit for bit, and leaves nothing half-written."""

import pathlib
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from end_to_end import runs
from end_to_end.runs import Death

from chopjax.hf.checkpoint import open_checkpoint

STEP, LINE = "chopjax.commands.watch:Watch.after", "chopjax.train.metrics:MetricsWriter.write"
SAVE = "chopjax.train.checkpoints:Checkpoints.save"
TENSOR, DONE = "chopjax.hf.safetensors:Writer.write", "chopjax.commands.stages:Stages._write"
TENSORS = 3 + 3 * 9  # of a model of three layers

WEIGHTS = "model.safetensors"


def check_nothing_is_half_written(workdir: pathlib.Path) -> None:
    """What has its final name is whole; what is not is hidden or has another name."""
    if (workdir / "export").exists():
        assert (workdir / "export" / "README.md").exists()
        open_checkpoint(workdir / "export")  # sizes of all tensors fit the file's
        assert len((workdir / "export" / WEIGHTS).read_bytes()) > 4 * 34_000
    for folder in (workdir / "checkpoints").glob("*"):
        if folder.name.isdigit():
            assert (folder / "state").is_dir() and (folder / "position").exists() and (folder / "identity").exists()


def check_same(workdir: pathlib.Path, whole: pathlib.Path) -> None:
    """The same lines, each once, the same weights, and nothing that the cut-off runs left."""
    assert runs.metrics(workdir) == runs.metrics(whole)
    assert runs.contents(workdir / "export") == runs.contents(whole / "export")
    names = {file.name for file in workdir.iterdir()}
    assert names == {file.name for file in whole.iterdir()}
    assert {file.name for file in (workdir / "checkpoints").iterdir()} == {"6", "8"}


def steps_after(workdir: pathlib.Path) -> list[int]:
    """Steps whose lines are on disk; each once, from 1 on."""
    steps = [line["step"] for line in runs.metrics(workdir)] if (workdir / "metrics.jsonl").exists() else []
    assert steps == list(range(1, len(steps) + 1))
    return steps


def killed(place: runs.Place, workdir: pathlib.Path, death: Death, devices: int = 1, *overrides: str) -> None:
    ended = runs.run(place, "heal", place.arguments(workdir, *overrides), devices, death)
    assert ended.status == -9, ended.stderr
    check_nothing_is_half_written(workdir)


def test_killed_again_and_again(place: runs.Place, copied: pathlib.Path, whole: pathlib.Path) -> None:
    killed(place, copied, Death(STEP, 2))  # before the first save: everything is lost
    assert steps_after(copied) == [1]
    killed(place, copied, Death(STEP, 6, after=copied / "checkpoints" / "3"))  # between saves
    assert steps_after(copied) == [1, 2, 3, 4, 5]
    killed(place, copied, Death(SAVE, 1, delay=0.003))  # goes on from 3, and dies while 6 is saved
    assert steps_after(copied)[:6] == [1, 2, 3, 4, 5, 6]
    killed(place, copied, Death(TENSOR, 17))  # while exporting
    assert steps_after(copied) == list(range(1, runs.STEPS + 1)) and not (copied / "export").exists()
    killed(place, copied, Death(DONE, 2))  # exported, but not yet known to be
    assert (copied / "export").exists()
    runs.done(place, "heal", place.arguments(copied))
    check_same(copied, whole)


def test_killed_at_random_moments(place: runs.Place, copied: pathlib.Path, whole: pathlib.Path) -> None:
    chance, deaths = random.Random(20), 0
    for _ in range(4):
        method, calls = chance.choice([(STEP, runs.STEPS), (LINE, runs.STEPS), (SAVE, 3), (TENSOR, TENSORS)])
        death = Death(method, chance.randint(1, calls), chance.choice([0.0, chance.uniform(0, 0.03)]))
        ended = runs.run(place, "heal", place.arguments(copied), death=death)
        assert ended.status in (0, -9), ended.stderr
        deaths += ended.status == -9
        check_nothing_is_half_written(copied)
    assert deaths >= 2
    runs.done(place, "heal", place.arguments(copied))
    check_same(copied, whole)


def test_another_mesh_goes_on_where_one_device_was(
    place: runs.Place, copied: pathlib.Path, whole: pathlib.Path
) -> None:
    killed(place, copied, Death(STEP, 5, after=copied / "checkpoints" / "3"))
    runs.done(place, "heal", place.arguments(copied, "mesh.fsdp=4"), devices=4)
    found, wanted = runs.metrics(copied), runs.metrics(whole)
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    assert found[:3] == wanted[:3] and found[3:] != wanted[3:]  # or it was not another mesh
    for name in ("loss", "kl", "next_token", "grad_norm"):
        np.testing.assert_allclose([line[name] for line in found], [line[name] for line in wanted], rtol=1e-5)


def test_a_finished_run_whose_last_checkpoint_is_gone(
    place: runs.Place, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    shutil.move(workdir / "checkpoints", tmp_path / "kept")
    (workdir / "checkpoints").mkdir()
    ended = runs.run(place, "export", place.arguments(workdir, "export.dtype=bfloat16"))
    assert ended.status == 2
    assert ended.stderr.startswith(f"error: {workdir}/checkpoints lacks the checkpoint of step 8, with which")
    shutil.move(tmp_path / "kept" / "6", workdir / "checkpoints" / "6")
    said = runs.done(place, "heal", place.arguments(workdir)).stdout
    assert "train: goes on, for checkpoints/8 is gone\n" in said and "train: goes on from step 6 of 8\n" in said
    check_same(workdir, whole)


def test_killed_before_the_chop(place: runs.Place, copied: pathlib.Path) -> None:
    two_phases = ("train.steps_before_chop=3", "train.steps=5", "train.save_every=2")
    whole = copied.with_name("whole")
    shutil.copytree(copied, whole)
    runs.done(place, "heal", place.arguments(whole, *two_phases))
    dense = copied / "checkpoints_before_chop"
    killed(place, copied, Death(STEP, 3, after=dense / "2"), 1, *two_phases)  # in the last step before the chop
    killed(place, copied, Death(STEP, 3), 1, *two_phases)  # step 3 again, and two after the chop
    assert steps_after(copied) == [1, 2, 3, 4]
    runs.done(place, "heal", place.arguments(copied, *two_phases))
    assert runs.metrics(copied) == runs.metrics(whole)
    assert runs.contents(copied / "export") == runs.contents(whole / "export")


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(6))
def test_the_whole_flow_killed_from_outside(
    seed: int, place: runs.Place, tmp_path: pathlib.Path, whole: pathlib.Path
) -> None:
    chance, workdir = random.Random(seed), tmp_path / "run"
    command = [sys.executable, "-m", "chopjax.train", *place.arguments(workdir)]
    for _ in range(10):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=place.environment)
        try:
            _, said = process.communicate(timeout=chance.uniform(1, 12))
            assert process.returncode == 0, said
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            check_nothing_is_half_written(workdir)
        time.sleep(0.1)
    runs.done(place, "train", place.arguments(workdir))
    assert runs.metrics(workdir) == runs.metrics(whole)
    assert runs.contents(workdir / "export") == runs.contents(whole / "export")
    assert not [folder for folder in workdir.rglob(".*") if folder.is_dir()]
