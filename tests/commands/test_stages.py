"""A finished stage is skipped, a changed one noticed, a cut-off one starts cleanly."""

import errno
import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from chopjax.commands.stages import Stage, Stages, difference
from chopjax.errors import Diverged, UserError

PLAN = Stage("plan", ("plan.json", "parts"))
TRAIN = Stage("train", ("checkpoints",), resumable=True)


class Run:
    """A workdir whose stage writes a file, counts its runs and keeps what was said."""

    def __init__(self, workdir: pathlib.Path, **options: Any) -> None:
        self.workdir, self.count = workdir, 0
        self.said: list[str] = []
        self.stages = Stages(workdir, say=self.said.append, **options)

    def work(self) -> None:
        self.count += 1
        (self.workdir / "plan.json").write_text(str(self.count))
        (self.workdir / "parts").mkdir(exist_ok=True)
        (self.workdir / "checkpoints").mkdir(exist_ok=True)

    def __call__(self, inputs: dict, stage: Stage = PLAN) -> bool:
        return self.stages.run(stage, inputs, self.work)


def test_finished_stage_is_skipped_and_said(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path)
    assert run({"plan.layers": (0, 1), "source": "a"})  # a tuple in memory and a list on disk are the same
    assert not run({"source": "a", "plan.layers": [0, 1]})
    assert run.count == 1
    assert run.said == ["plan: starts", "plan: done before, skipped"]


def test_changed_input_is_named_and_the_stage_made_again(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path)
    run({"plan.mlp": 8, "source": "a"})
    before = run.stages.digest("plan")
    (tmp_path / "parts" / "stale").write_text("from the first run")
    assert run({"plan.mlp": 9, "source": "a"})
    assert run.said[-1] == "plan: made again, for plan.mlp was 8 and is 9"
    assert not (tmp_path / "parts" / "stale").exists()
    assert run.stages.digest("plan") != before


NEWER = {"plan.gated": False, "data.sources[]": {"weight": 1.0, "language": ""}}


def test_field_that_is_newer_than_the_record_is_no_change_while_it_has_its_default(tmp_path: pathlib.Path) -> None:
    old = {"plan.mlp": 8, "data.sources": [{"path": "a", "weight": 2.0}]}
    now = {"plan.mlp": 8, "plan.gated": False, "data.sources": [{"path": "a", "weight": 2.0, "language": ""}]}
    Run(tmp_path)(old)
    Run(tmp_path)(old, TRAIN)
    run = Run(tmp_path, defaults=NEWER)
    before = run.stages.digest("plan")
    assert not run(now)
    run.stages.refuse_changes(TRAIN, now)
    (tmp_path / "plan.json").unlink()
    assert run(now)
    assert (run.stages.digest("plan"), run.stages.inputs("plan")) == (before, old)
    assert run.stages.pending(PLAN, now | {"plan.gated": True}) == "made again, for plan.gated was False and is True"
    source = {"path": "a", "weight": 2.0, "language": "de"}
    with pytest.raises(UserError, match="train in .* began otherwise: data.sources was .* and is"):
        run({**now, "data.sources": [source]}, TRAIN)


def test_missing_output_is_made_again(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path)
    run({})
    (tmp_path / "plan.json").unlink()
    assert run({})
    assert run.said[-1] == "plan: made again, for plan.json is gone"


def test_resumable_stage_goes_on_where_part_of_its_output_is_gone(tmp_path: pathlib.Path) -> None:
    run, stage = Run(tmp_path), Stage("train", ("checkpoints", "checkpoints/8"), resumable=True)
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    run({}, stage)
    assert not run({}, stage)
    (tmp_path / "checkpoints" / "8").rmdir()
    assert run({}, stage)
    assert run.said[-1] == "train: goes on, for checkpoints/8 is gone"


def test_training_that_went_wrong_leaves_what_was_made_before(tmp_path: pathlib.Path) -> None:
    def diverges() -> None:
        (tmp_path / "plan.json").write_text("half")
        raise Diverged("step 3")

    run = Run(tmp_path)
    run({"seed": 0})
    before = contents(tmp_path)
    with pytest.raises(Diverged):
        run.stages.run(PLAN, {"seed": 1}, diverges)
    assert contents(tmp_path) == before
    with pytest.raises(Diverged):
        run.stages.run(TRAIN, {"seed": 0}, diverges)
    assert run.stages.pending(TRAIN, {"seed": 0}) == "goes on where it was cut off"  # its checkpoints are there


def interrupted(run: Run, stage: Stage, inputs: dict) -> None:
    def work() -> None:
        run.work()
        (run.workdir / "parts" / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.stages.run(stage, inputs, work)


def test_cut_off_stage_starts_again_from_nothing(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path)
    interrupted(run, PLAN, {"seed": 1})
    with pytest.raises(UserError, match=r"holds no finished plan; run python -m chopjax.plan first"):
        run.stages.digest("plan")
    assert run({"seed": 1})
    assert run.said[-1] == "plan: was cut off and starts again"
    assert not (tmp_path / "parts" / "half").exists()


def test_bad_input_leaves_what_was_made_before(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path)
    run({"seed": 1})
    (tmp_path / "parts" / "dear").write_text("made by the first run")
    before = contents(tmp_path)

    def work() -> None:
        run.work()
        raise UserError("no such thing")

    with pytest.raises(UserError, match="no such thing"):
        run.stages.run(PLAN, {"seed": 2}, work)
    assert contents(tmp_path) == before
    assert not run({"seed": 1})  # still done
    with pytest.raises(UserError, match="no such thing"):
        run.stages.run(TRAIN, {"train.steps": 5}, work)
    assert contents(tmp_path).keys() == before.keys()  # so that the mended input is not refused as a change


def test_a_full_disk_and_a_kill_before_it_leave_what_was_made_before(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path)
    run({"seed": 1})
    (tmp_path / "parts" / "dear").write_text("made by the first run")
    interrupted(run, PLAN, {"seed": 2})
    assert not (tmp_path / "parts" / "dear").exists()

    def full() -> None:
        run.work()
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run.stages.run(PLAN, {"seed": 2}, full)
    assert (tmp_path / "parts" / "dear").read_text() == "made by the first run"
    assert (tmp_path / "plan.json").read_text() == "1"
    assert run({"seed": 2}) and run.count == 4


def interruptions(folder: pathlib.Path, action: str) -> list[dict[str, Any]]:
    """What came of a stage that was interrupted at each of its file operations."""
    script = pathlib.Path(__file__).with_name("interrupted_stages.py")
    done = subprocess.run([sys.executable, str(script), str(folder), action], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > 30  # opened, renamed and removed
    return found


ONE, TWO = ({name: text for name in ("box.json", "box/a", "box/b")} for text in ("one", "two"))


def test_killed_at_any_file_operation_a_stage_can_be_repeated_and_nothing_is_left_over(tmp_path: pathlib.Path) -> None:
    for kill in interruptions(tmp_path, "kill"):
        assert kill["status"] == 99
        assert kill["after"] == TWO  # the same command again
        assert kill["refused"] == (ONE if kill["again"] else TWO)  # or another one, which refuses its input
        assert kill["back"] == ONE  # and then the first command


def test_a_disk_that_fails_at_any_file_operation_loses_nothing(tmp_path: pathlib.Path) -> None:
    for failure in interruptions(tmp_path, str(errno.EIO)):
        left = {name: text for name, text in failure["left"].items() if ".before" not in name}
        assert failure["status"] in (97, 98)  # nothing happened, or the error was raised
        # Intact, or finished but for the removal of what was made before.
        assert left == (ONE if failure["again"] else TWO)
        assert not failure["again"] or left == failure["left"]
        assert (failure["after"], failure["back"]) == (TWO, ONE)


def test_foreign_outputs_are_found_before_the_work(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path)
    run.stages.refuse_foreign(PLAN, TRAIN)
    (tmp_path / "parts").mkdir()
    with pytest.raises(UserError, match="parts is there, but was not made by plan of this run"):
        run.stages.refuse_foreign(PLAN, TRAIN)


def test_what_no_run_made_is_not_touched(tmp_path: pathlib.Path) -> None:
    (tmp_path / "plan.json").write_text("by hand")
    with pytest.raises(UserError, match=r"plan.json is there, but was not made by plan of this run; move it away"):
        Run(tmp_path)({"seed": 1})
    assert contents(tmp_path) == {"plan.json": b"by hand"}


def test_some_inputs_are_looked_at_before_the_others_are_known(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path)
    run.stages.refuse_changes(TRAIN, {"seed": 1})
    run({"seed": 1, "rows": ["a"]}, TRAIN)
    run.stages.refuse_changes(TRAIN, {"seed": 1})
    with pytest.raises(UserError, match="began otherwise: seed was 1 and is 2"):
        run.stages.refuse_changes(TRAIN, {"seed": 2})


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_resumable_stage_keeps_its_outputs_and_refuses_a_change(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path)
    interrupted(run, TRAIN, {"train.steps": 5})
    (tmp_path / "checkpoints" / "3").write_text("dear")
    with pytest.raises(UserError, match=r"train in .* began otherwise: train.steps was 5 and is 6; put it back"):
        run({"train.steps": 6}, TRAIN)
    assert run({"train.steps": 5}, TRAIN)
    assert run.said[-1] == "train: goes on where it was cut off"
    assert (tmp_path / "checkpoints" / "3").read_text() == "dear"


def test_only_the_writer_writes(tmp_path: pathlib.Path) -> None:
    arrivals = []
    run = Run(tmp_path, writer=False, barrier=lambda: arrivals.append(1))
    assert run({"seed": 1})
    assert run.count == 1 and not (tmp_path / "stages").exists()
    assert run.said == [] and len(arrivals) == 4


def test_broken_record_is_named(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path)
    run({})
    (tmp_path / "stages" / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"stages/plan.json: not valid JSON \(.*\); remove the file to make plan again"):
        run({})
    newer = {"format": 2, "stage": "plan", "finished": True, "outputs": [], "inputs": {}}
    (tmp_path / "stages" / "plan.json").write_text(json.dumps(newer))
    with pytest.raises(UserError, match=r"newer chopjax \(format 2, this one reads up to 1\); update chopjax"):
        run({})
    (tmp_path / "stages" / "plan.json").write_text(json.dumps(newer | {"format": 1, "finished": "yes"}))
    with pytest.raises(UserError, match=r"plan.json: finished is 'yes', not true or false; remove"):
        run({})


def test_record_can_be_read_by_a_person(tmp_path: pathlib.Path) -> None:
    Run(tmp_path)({"seed": 1})
    record = json.loads((tmp_path / "stages" / "plan.json").read_text())
    assert record == {"stage": "plan", "finished": True, "outputs": ["plan.json", "parts"], "inputs": {"seed": 1}}


def test_difference_counts_the_rest() -> None:
    assert difference({"a": 1}, {"a": 1}) == ""
    assert difference({"a": 1}, {"a": None}) == "a was 1 and is None"
    assert difference({"a": 1, "b": 2}, {"a": 1, "c": 3}) == "b was 2 and is not set (and 1 more)"
