"""A process that lags is named, by steps that it has not begun or by its silence."""

import json
import pathlib
import re
import subprocess
import sys
import time

from chopjax.train.heartbeat import FOLDER, Beat, Heartbeat, laggards, read


def beat(process: int, begun: int, time: float = 100.0) -> Beat:
    return Beat(process, f"host-{process}", begun, begun - 2, time)


def test_who_has_begun_fewer_steps_lags() -> None:
    beats = {index: beat(index, step) for index, step in enumerate((8, 6, 8, 7))}
    assert laggards(beats, 101, 60) == {
        1: "process 1 on host-1 has begun step 6, others 8",
        3: "process 3 on host-3 has begun step 7, others 8",
    }


def test_who_is_silent_lags_whatever_it_began() -> None:
    beats = {0: beat(0, 8), 1: beat(1, 9, time=20), 2: None}
    assert laggards(beats, 101, 60) == {
        1: "process 1 on host-1 is silent since 81 s, at step 9",
        2: "process 2: it has written no heartbeat",
    }


def test_all_equally_far() -> None:
    assert laggards({0: beat(0, 8), 1: beat(1, 8)}, 100, 60) == {}


def wait_for(what, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_each_process_names_the_one_that_lags_once(tmp_path: pathlib.Path) -> None:
    said: dict[int, list[str]] = {0: [], 1: [], 2: []}
    beats = [
        Heartbeat(tmp_path, 3, process=index, processes=3, limit=1.0, say=said[index].append) for index in range(3)
    ]
    folder = tmp_path / "heartbeats"
    for one in beats:
        one.begun(4)
        one.ended(4)  # what compiles has ended
    for index in (0, 2):
        beats[index].begun(6)
    wait_for(lambda: said[0] and said[1] and (folder / "2.stacks.txt").exists())
    for index in (0, 1):
        line = r"no step has ended for \d+ s, since step 4: process 1 on \S+ has begun step 4, others 6"
        assert re.fullmatch(line, said[index][0])
    assert not said[2]  # the lowest that waits speaks for the others
    assert "wait_for" in (folder / "0.stacks.txt").read_text()
    assert read(folder, 2).begun == 6
    time.sleep(0.2)
    assert len(said[0]) == 1
    beats[0].ended(6)
    wait_for(lambda: len(said[0]) == 2)
    for one in beats:
        one.close()
    assert {file.name for file in folder.iterdir()} == {f"{index}.stacks.txt" for index in range(3)}


def test_compiling_is_no_hang_and_nothing_is_left(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "heartbeats"
    folder.mkdir()
    (folder / "5.json").write_text("{}")  # of an earlier start with more processes
    said: list[str] = []
    with Heartbeat(tmp_path, limit=0.05, say=said.append):
        assert [file.name for file in folder.iterdir()] == ["0.json"]
        assert json.loads((folder / "0.json").read_text())["process"] == 0
        time.sleep(0.2)
    assert not said and not folder.exists()


HANGS = """
import sys, time
from chopjax.train.heartbeat import Heartbeat
with Heartbeat(sys.argv[1], limit=0.1, end=True) as heartbeat:
    heartbeat.begun(1)
    heartbeat.ended(1)
    time.sleep(60)
"""


def test_a_process_that_waits_may_end(tmp_path: pathlib.Path) -> None:
    ended = subprocess.run([sys.executable, "-c", HANGS, str(tmp_path)], capture_output=True, text=True, timeout=50)
    assert ended.returncode == 1
    assert ended.stderr.startswith("no step has ended for 0 s, since step 1: all processes wait, so the devices or")


def test_a_beat_that_is_damaged_is_none(tmp_path: pathlib.Path) -> None:
    beat = {"process": 0, "host": "a", "begun": 3, "ended": 2, "time": 5.0}
    for change in ({}, {"time": "5"}, {"begun": None}, {"ended": [2]}, {"more": 1}):
        (tmp_path / "0.json").write_text(json.dumps(beat | change))
        assert read(tmp_path, 0) == (None if change else Beat(**beat))


def test_half_written_beats_of_killed_processes_are_removed(tmp_path: pathlib.Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / ".7.json.17.tmp").write_text("{")
    with Heartbeat(tmp_path):
        assert [file.name for file in (tmp_path / FOLDER).iterdir()] == ["0.json"]
