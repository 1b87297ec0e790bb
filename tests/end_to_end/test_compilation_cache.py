"""Starts that load what an earlier start, or another command, compiled."""

import pathlib
import re
import shutil

import pytest
from end_to_end import runs

DEVICES, STEPS = 4, 3


class Starts:
    """Trainings from the same chopped workdir, each in a process and a workdir of its own, that share their programs.

    The first finds the training step compiled ahead of it.
    """

    def __init__(self, place: runs.Place, chopped: pathlib.Path, folder: pathlib.Path) -> None:
        self.place, self.chopped, self.folder, self.programs = place, chopped, folder, folder / "programs"
        self._run("ahead", folder / "ahead")
        self.ahead = self.kept("jit_step")
        self.first = self.trained("first")

    def trained(self, name: str) -> tuple[str, list[dict]]:
        """What a training said, and its metrics."""
        return self._run("heal", self.folder / name).stdout, runs.metrics(self.folder / name)

    def kept(self, program: str = "") -> dict[str, int]:
        """The entries of a program, or of all, with their sizes."""
        return {file.name: file.stat().st_size for file in self.programs.glob(f"{program}*-cache")}

    def _run(self, command: str, workdir: pathlib.Path) -> runs.Ended:
        shutil.copytree(self.chopped, workdir)
        chosen = self.place.arguments(workdir, f"compilation_cache={self.programs}", f"train.steps={STEPS}")
        return runs.done(self.place, command, chosen, DEVICES)


@pytest.fixture(scope="module")
def starts(place: runs.Place, chopped: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Starts:
    return Starts(place, chopped, tmp_path_factory.mktemp("starts"))


def counts(said: str) -> tuple[int, int]:
    """Programs loaded, and programs compiled, by JAX's own events, until the first step was done."""
    ((loaded, compiled),) = re.findall(r"^compiled programs: (\d+) loaded from .*, (\d+) compiled and kept", said, re.M)
    return int(loaded), int(compiled)


def test_the_step_of_a_run_is_the_one_that_was_compiled_ahead(starts: Starts) -> None:
    assert len(starts.ahead) == 1 and starts.kept("jit_step") == starts.ahead
    loaded, compiled = counts(starts.first[0])
    assert loaded > 0 and compiled > 0


def test_a_second_start_compiles_nothing_and_learns_the_same(starts: Starts) -> None:
    kept = starts.kept()
    said, metrics = starts.trained("second")
    assert counts(said) == (sum(counts(starts.first[0])), 0)
    assert starts.kept() == kept
    assert metrics == starts.first[1] and len(metrics) == STEPS


def test_a_damaged_program_is_said_in_a_line_and_made_anew(starts: Starts) -> None:
    ((name, size),) = starts.kept("jit_step").items()
    (starts.programs / name).write_bytes((starts.programs / name).read_bytes()[: size // 2])
    said, metrics = starts.trained("third")
    (line,) = (line for line in said.splitlines() if line.startswith("compilation_cache:"))
    assert line.startswith(f"compilation_cache: jit_step cannot be loaded from {starts.programs} (")
    assert counts(said) == (sum(counts(starts.first[0])) - 1, 1)
    assert metrics == starts.first[1]
    assert starts.kept("jit_step").keys() == {name} and starts.kept()[name] > size // 2
