"""What killed processes left half-written is removed; what a live process writes is not."""

import fcntl
import os
import pathlib
import subprocess
import sys

import pytest

from chopjax import files, folders, temporary

# Writes half a file under a temporary name, says so, and waits to be killed.
STUCK = """
import pathlib, sys, time
from chopjax import temporary
with temporary.replacing(pathlib.Path(sys.argv[1])) as place:
    place.write_text("half")
    print(place, flush=True)
    time.sleep(60)
"""


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_of_a_live_process_stays_until_it_is_killed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "plan.json"
    process = subprocess.Popen([sys.executable, "-c", STUCK, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        half = pathlib.Path(process.stdout.readline().strip())
        assert half.name == f".plan.json.{process.pid}.tmp"
        temporary.clear(path)
        temporary.clear_inside(tmp_path, r"\w+\.json")
        files.write_text(path, "ours")
        assert names(tmp_path) == sorted([half.name, "plan.json"])
    finally:
        process.kill()
        process.communicate()
    temporary.clear(path)
    assert names(tmp_path) == ["plan.json"] and path.read_text() == "ours"


def test_a_write_removes_what_was_left_of_the_same_file_alone(tmp_path: pathlib.Path) -> None:
    left = (".plan.json.17.tmp", ".plan.json.tmp", ".plan.json.x.tmp", ".a.plan.json.17.tmp", ".plan.json")
    for name in left:
        (tmp_path / name).write_text("half")
    files.write_text(tmp_path / "plan.json", "whole")
    assert names(tmp_path) == [".a.plan.json.17.tmp", ".plan.json", ".plan.json.x.tmp", "plan.json"]
    temporary.clear_inside(tmp_path, r"\w\.plan\.json")
    assert names(tmp_path) == [".plan.json", ".plan.json.x.tmp", "plan.json"]


def test_a_process_of_the_same_id_elsewhere_is_waited_for(tmp_path: pathlib.Path) -> None:
    """On shared storage two hosts can have a process of this id; here another thread's lock stands for it."""
    half = tmp_path / f".plan.json.{os.getpid()}.tmp"
    half.write_text("the other's")
    with open(half, "rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        script = f"import os; os.getpid = lambda: {os.getpid()}\n"
        script += "import sys, pathlib\nfrom chopjax import files\nfiles.write_text(pathlib.Path(sys.argv[1]), 'ours')"
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "plan.json")])
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        assert half.read_text() == "the other's"
        half.rename(tmp_path / "plan.json")
    assert process.wait() == 0
    assert names(tmp_path) == ["plan.json"] and (tmp_path / "plan.json").read_text() == "ours"


def test_without_locks_only_old_files_are_removed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for name in (".a.1.tmp", ".b.2.tmp"):
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / ".a.1.tmp", (1e9, 1e9))
    temporary.clear_inside(tmp_path, r"\w")
    assert names(tmp_path) == [".b.2.tmp"]
    files.write_text(tmp_path / "c", "whole")
    assert names(tmp_path) == [".b.2.tmp", "c"]


def test_half_and_replaced_folders_are_cleared(tmp_path: pathlib.Path) -> None:
    for name in ("rows", ".rows.old", ".rows.writing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    folders.clear(tmp_path / "rows")
    assert names(tmp_path) == ["rows"] and (tmp_path / "rows" / "a").read_text() == "rows"
    (tmp_path / "rows").rename(tmp_path / ".rows.old")
    folders.clear(tmp_path / "rows")
    assert names(tmp_path) == ["rows"] and (tmp_path / "rows" / "a").read_text() == "rows"
