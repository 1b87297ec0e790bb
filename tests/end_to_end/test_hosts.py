"""Training on several hosts that are killed, told to end or hang, and on another number of them afterwards."""

import json
import pathlib
import re
import shutil
import socket
from signal import SIGTERM

import pytest
from end_to_end import hosts, runs
from end_to_end.runs import Death

from chopjax.hf.checkpoint import open_checkpoint

STEP = "chopjax.commands.watch:Watch.after"
DEVICES = 4


@pytest.fixture(scope="module")
def killed(place: runs.Place, chopped: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A workdir in which two hosts trained until both were killed, five steps begun and three saved; copy it."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    shutil.copytree(chopped, workdir)
    death = Death(STEP, 5, after=workdir / "checkpoints" / "3")
    ended = hosts.run(place, "heal", place.arguments(workdir), 2, DEVICES // 2, {0: death, 1: death})
    assert [one.status for one in ended] == [-9, -9], "\n".join(one.stderr for one in ended)
    return workdir


def check_same(workdir: pathlib.Path, whole: pathlib.Path) -> None:
    """The same steps, each once, with the losses of one process on one device."""
    found, wanted = runs.metrics(workdir), runs.metrics(whole)
    assert [line.keys() for line in found] == [line.keys() for line in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    exports = [open_checkpoint(folder / "export") for folder in (workdir, whole)]
    assert exports[0].raw_config == exports[1].raw_config and exports[0].tensors.keys() == exports[1].tensors.keys()
    assert not (workdir / "heartbeats").exists()


def row(workdir: pathlib.Path, step: int) -> int:
    """The next row of the data at a checkpoint."""
    return json.loads((workdir / "checkpoints" / str(step) / "position" / "data.json").read_text())["row"]


@pytest.mark.parametrize("count", [1, 4])
def test_another_number_of_hosts_goes_on(
    count: int, place: runs.Place, killed: pathlib.Path, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = pathlib.Path(shutil.copytree(killed, tmp_path / "run"))
    assert row(workdir, 3) == 12 and not (workdir / "checkpoints" / "6").exists()
    ended = hosts.done(place, "heal", place.arguments(workdir), count, DEVICES // count)
    assert "train: goes on from step 3 of 8" in ended[0].stdout
    assert not any("train" in one.stdout for one in ended[1:])
    assert row(workdir, 8) == 32
    check_same(workdir, whole)


def test_one_host_is_told_to_end_and_the_last_checkpoint_is_damaged(
    place: runs.Place, copied: pathlib.Path, whole: pathlib.Path
) -> None:
    # JAX looks for the signal once a second.
    deaths = {1: Death(STEP, 3, signal=SIGTERM, slow=1.0)}
    ended = hosts.run(place, "heal", place.arguments(copied, "train.save_every=1"), 2, DEVICES // 2, deaths)
    assert [one.status for one in ended] == [0, 0], "\n".join(one.stderr for one in ended)
    steps = [line["step"] for line in runs.metrics(copied)]
    last = steps[-1]
    assert 3 <= last < runs.STEPS and steps == list(range(1, last + 1))
    said = f"train: told to end (SIGTERM); step {last} of 8 is saved, the same command goes on"
    assert said in ended[0].stdout and "SIGTERM" not in ended[1].stdout
    assert row(copied, last) == 4 * last and not (copied / "export").exists()
    for file in (file for file in (copied / "checkpoints" / str(last) / "state").rglob("*") if file.is_file()):
        file.write_bytes(file.read_bytes()[:3])
    ended = hosts.done(place, "heal", place.arguments(copied), 2, DEVICES // 2)
    assert f"checkpoints_damaged, going on from step {last - 1}\n" in ended[0].stdout
    assert f"train: goes on from step {last - 1} of 8" in ended[0].stdout
    check_same(copied, whole)


def test_a_host_that_hangs_is_named(place: runs.Place, copied: pathlib.Path) -> None:
    hang = Death("chopjax.data.batches:Batches.__next__", 5, after=copied / "never")
    settings = place.arguments(copied, "train.hang_seconds=8", "train.hang_ends=True")
    ended = hosts.run(place, "heal", settings, 2, DEVICES // 2, {1: hang})
    assert ended[0].status == 1
    line = next(line for line in ended[0].stderr.splitlines() if line.startswith("no step has ended for "))
    assert "since step 4: process 1 on " in line and line.endswith("has begun step 4, others 5")
    assert "_settle" in (copied / "heartbeats" / "0.stacks.txt").read_text()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_is_killed_is_named(victim: int, place: runs.Place, copied: pathlib.Path) -> None:
    """The service by which the processes know of each other lives in process 0, and JAX aborts where that is gone."""
    ended = hosts.run(place, "heal", place.arguments(copied), 2, DEVICES // 2, {victim: Death(STEP, 5)})
    assert ended[victim].status == -9
    other = ended[1 - victim]
    assert other.status == 1 and "Traceback" not in other.stderr
    said = re.sub(r"for \d+ s", "for N s", other.stderr.splitlines()[-1])
    assert said == (
        f"error: process {victim} on {socket.gethostname()} is gone: no sign of life for N s; start all processes "
        "again, and the same command goes on from the newest checkpoint"
    )
