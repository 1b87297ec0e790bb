"""Runs of one config in copies of a workdir that is chopped already, and what is to be true of them."""

import pathlib
import shutil

import numpy as np
from end_to_end import runs
from end_to_end.runs import Death
from safetensors.numpy import load_file

from chopjax.commands import cli
from chopjax.commands.run import Run
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.reading import load_params

STEP = "chopjax.commands.watch:Watch.after"
CUT = ("plan.embed=28", "plan.widths_by=magnitude", "train.batch=8", "evaluate.batch=8", "evaluate.prompts=()")
# As much as 8 devices of this very process need.
HERE = ("mesh.data=8", "mesh.fsdp=1", "score.batch=8")


class Flow:
    """Runs of one config, each in a copy of a workdir."""

    def __init__(self, place: runs.Place, chopped: pathlib.Path, folder: pathlib.Path, *overrides: str) -> None:
        self._place, self._chopped, self._folder, self._overrides = place, chopped, folder, (*CUT, *overrides)

    def arguments(self, name: str, *overrides: str) -> list[str]:
        return self._place.arguments(self._folder / name, *self._overrides, *overrides)

    def copied(self, name: str) -> pathlib.Path:
        return pathlib.Path(shutil.copytree(self._chopped, self._folder / name))

    def whole(self, name: str = "whole", *overrides: str) -> pathlib.Path:
        """A run from its beginning to its end."""
        workdir = self.copied(name)
        runs.done(self._place, "heal", self.arguments(name, *overrides))
        return workdir

    def killed(self, name: str, *deaths: Death) -> pathlib.Path:
        """A run that is started again after each death."""
        workdir = self.copied(name)
        for death in deaths:
            ended = runs.run(self._place, "heal", self.arguments(name), death=death)
            assert ended.status == -9, ended.stderr
        runs.done(self._place, "heal", self.arguments(name))
        return workdir


def check_same(workdir: pathlib.Path, whole: pathlib.Path) -> None:
    assert runs.metrics(workdir) == runs.metrics(whole)
    assert runs.contents(workdir / "export") == runs.contents(whole / "export")


def check_export(workdir: pathlib.Path) -> None:
    """It holds what the student held before training, in its shapes, and nothing else; and other numbers."""
    before, after = (load_file(workdir / name / "model.safetensors") for name in ("student", "export"))
    assert {name: array.shape for name, array in after.items()} == {name: a.shape for name, a in before.items()}
    assert all(np.isfinite(array).all() for array in after.values())
    load_params(open_checkpoint(workdir / "export"))
    assert (after["model.embed_tokens.weight"] != before["model.embed_tokens.weight"]).any()


def run_here(place: runs.Place, workdir: pathlib.Path, *overrides: str) -> Run:
    return Run(cli.parse(["here", *place.arguments(workdir, *overrides, *HERE)]))
