"""The short form of `make torture`, with a fixed seed, by the command that a person would give."""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SEED = 1


LINES = (
    r"kills: [56] kills, no finding \(.*\)",
    r"fuzz: 150 inputs, no finding \(\d+ accepted, \d+ refused\)",
    r"handles: 16 saves, no finding \(.*\)",
    rf"torture: no finding, seed {SEED}, \d+ minutes",
)


def test_nothing_is_found(tmp_path: pathlib.Path) -> None:
    arguments = [f"--folder={tmp_path}", f"--seed={SEED}", "--size=short", "--only=kills,fuzz,handles"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-m", "torture", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.fullmatch("\n".join(LINES), "\n".join(ended.stdout.splitlines()[-4:]))
