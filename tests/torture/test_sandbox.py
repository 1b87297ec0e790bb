"""The sandbox tells every kind of fault from a good end, or the fuzz campaign would find nothing."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Forked from a process without threads, which this one is not.
SCRIPT = """
import json, os, pathlib, sys, time
from torture.sandbox import Sandbox
from chopjax.errors import UserError

folder = pathlib.Path(sys.argv[1])
os.mkfifo(folder / "inside" / "pipe")

def refused(text):
    def read():
        raise UserError(text)
    return read

def spins():
    while True:
        pass

def fails():
    raise KeyError("x")

def grows():
    bytearray(600 << 20)
    return ""

def writes(path):
    def read():
        path.write_text("x")
        return ""
    return read

readers = {
    "accepted": lambda: "",
    "wrong": lambda: "other numbers",
    "refused": refused("plan.json: no layers; add some"),
    "message": refused("x" * 5000),
    "traceback": fails,
    "memory": grows,
    "slow": spins,
    "waits": lambda: (folder / "inside" / "pipe").read_text(),
    "inside": writes(folder / "inside" / "x"),
    "outside": writes(folder / "x"),
    "secret": lambda: pathlib.Path("/etc/passwd").read_text()[:0],
    "died": lambda: os._exit(3),
}
sandbox = Sandbox(folder, folder / "recipe.py", [folder / "inside"], [], cpu_seconds=3, wall_seconds=10)
print(json.dumps({name: sandbox.run(read).__dict__ for name, read in readers.items()}))
"""


def test_every_kind_of_fault_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "inside").mkdir()
    recipe = (
        "from chopjax.commands.defaults import default_config\n\n\ndef get_config():\n    return default_config()\n"
    )
    (tmp_path / "recipe.py").write_text(recipe)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    outcomes = json.loads(ended.stdout)
    texts = {name: (outcome["kind"], outcome["text"]) for name, outcome in outcomes.items()}
    frame = texts.pop("traceback")
    assert frame[0] == "traceback" and frame[1].startswith("status 1: KeyError: 'x'")
    assert texts == {
        "accepted": ("accepted", ""),
        "wrong": ("wrong", "other numbers"),
        "refused": ("refused", "error: plan.json: no layers; add some"),
        "message": ("message", f"not one short line (5007 characters): error: {'x' * 193}"),
        "memory": ("memory", texts["memory"][1]),
        "slow": ("slow", "over 3 s of CPU time"),
        "waits": ("slow", "waited for more than 10 s"),
        "inside": ("accepted", ""),
        "outside": ("outside", f"wrote {tmp_path}/x"),
        "secret": ("outside", "read /etc/passwd"),
        "died": ("died", "status 3: "),
    }
