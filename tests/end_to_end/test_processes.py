"""The whole flow in several processes that share the workdir, as on hosts: the same losses, one set of files."""

import json
import pathlib

import pytest
from end_to_end import hosts, runs

from chopjax.hf.checkpoint import open_checkpoint


@pytest.fixture(scope="module")
def alone(place: runs.Place, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The finished workdir of one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    runs.done(place, "train", place.arguments(workdir))
    return workdir


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.campaign)])
def together(
    request: pytest.FixtureRequest, place: runs.Place, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, list[str]]:
    """A finished workdir, and what each process said."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    ended = hosts.done(place, "train", place.arguments(workdir), request.param, 4 // request.param)
    return workdir, [one.stdout for one in ended]


def test_several_processes_learn_what_one_learns(together: tuple[pathlib.Path, list[str]], alone: pathlib.Path) -> None:
    ours, theirs = runs.metrics(together[0]), runs.metrics(alone)
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    # Of the exported folders. Single weights may differ by more: Adam divides small gradients by their own size.
    evaluations = [json.loads((folder / "evaluation.json").read_text()) for folder in (together[0], alone)]
    for name, figures in evaluations[1].items():
        assert evaluations[0][name] == {key: value and pytest.approx(value, rel=1e-5) for key, value in figures.items()}
    exports = [open_checkpoint(folder / "export") for folder in (together[0], alone)]
    assert exports[0].raw_config == exports[1].raw_config
    assert exports[0].tensors.keys() == exports[1].tensors.keys()


def test_only_the_first_process_speaks_and_writes(together: tuple[pathlib.Path, list[str]]) -> None:
    workdir, outputs = together
    assert "train: starts" in outputs[0]
    for output in outputs[1:]:
        assert not [line for line in output.splitlines() if not line.startswith(("[Gloo]", "verify: "))]
    assert (workdir / "report.html").exists()
    assert not [file for file in workdir.rglob("*") if file.name.startswith(".")]
