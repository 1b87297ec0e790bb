"""The short form of `make torture`, with a fixed seed: each campaign is run by the command that a person would give."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SEED = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Shared by all campaigns, and with it the workbench."""
    return tmp_path_factory.mktemp("torture")


@pytest.mark.parametrize(
    ("campaign", "line"),
    [
        ("kills", r"kills: [67] kills, no finding .*"),
        ("fuzz", r"fuzz: 150 inputs, no finding \(\d+ accepted, \d+ refused\)"),
        ("handles", r"handles: 24 saves, no finding .*"),
    ],
)
def test_nothing_is_found(campaign: str, line: str, folder: pathlib.Path) -> None:
    arguments = [f"--folder={folder}", f"--seed={SEED}", "--size=short", f"--only={campaign}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-m", "torture", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    *lines, last = ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.fullmatch(line, lines[-1])
    assert last.startswith(f"torture: no finding, seed {SEED}, ")
