"""The whole flow in two processes that share the workdir, as on two hosts: the same losses, one set of files."""

import json
import pathlib
import socket
import subprocess
import sys

import pytest
from end_to_end import runs

from chopjax.hf.checkpoint import open_checkpoint

# On a TPU pod JAX finds the other processes by itself; here they are told of each other before the command begins.
SCRIPT = """
import os, sys, traceback
import jax
port, process = int(sys.argv[1]), int(sys.argv[2])
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from chopjax.commands import cli
sys.argv = ["train", *sys.argv[3:]]
try:
    cli.run("train")
except BaseException:
    traceback.print_exc()
    os._exit(1)  # else it would wait for the other process, which waits for it
"""


@pytest.fixture(scope="module")
def together(place: runs.Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, list[str]]:
    """A finished workdir, and what each process said."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = place.arguments(workdir, "mesh.distributed=True")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(port), str(process), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=place.environment,
        )
        for process in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return workdir, outputs


def test_two_processes_learn_what_one_learns(
    place: runs.Place, together: tuple[pathlib.Path, list[str]], tmp_path: pathlib.Path
) -> None:
    runs.done(place, "train", place.arguments(tmp_path / "alone"))
    ours, theirs = runs.metrics(together[0]), runs.metrics(tmp_path / "alone")
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    # Of the exported folders. Single weights may differ by more: Adam divides small gradients by their own size.
    evaluations = [json.loads((folder / "evaluation.json").read_text()) for folder in (together[0], tmp_path / "alone")]
    for name, figures in evaluations[1].items():
        assert evaluations[0][name] == {key: value and pytest.approx(value, rel=1e-5) for key, value in figures.items()}
    exports = [open_checkpoint(folder / "export") for folder in (together[0], tmp_path / "alone")]
    assert exports[0].raw_config == exports[1].raw_config
    assert exports[0].tensors.keys() == exports[1].tensors.keys()


def test_only_the_first_process_speaks_and_writes(together: tuple[pathlib.Path, list[str]]) -> None:
    workdir, outputs = together
    assert "train: starts" in outputs[0]
    assert not [line for line in outputs[1].splitlines() if not line.startswith(("[Gloo]", "verify: "))]
    assert (workdir / "report.html").exists()
    assert not [file for file in workdir.rglob("*") if file.name.startswith(".")]
