"""The chop command with a refit: what it leaves, what it says, and what it refuses."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from end_to_end import runs

from chopjax.axes import flatten
from chopjax.chop.apply import chop_config, chop_params
from chopjax.chop.plan import Plan
from chopjax.chop.refit import DOWN, OUTPUT
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.reading import load_params
from chopjax.models.parameters import declare


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> runs.Place:
    """A model in bfloat16 with a text."""
    made = runs.Place.make(tmp_path_factory.mktemp("refit"))
    runs.model(made.folder / "bfloat16", seed=3, dtype="bfloat16")
    return made


def test_two_kernels_are_fitted_and_all_else_is_the_plain_chop(place: runs.Place, tmp_path: pathlib.Path) -> None:
    workdir = tmp_path / "run"
    settings = ("plan.refit=True", f"source={place.folder / 'bfloat16'}", "plan.merge_kv_heads=True", "plan.kv_heads=1")
    said = runs.done(place, "chop", place.arguments(workdir, *settings)).stdout
    assert "projections fitted anew" in said and "residual stream after the MLP" in said
    plan = Plan.from_json((workdir / "plan.json").read_text())
    assert [edit.name for edit in plan.edits] == ["merge_kv_heads", "refit"]
    assert json.loads((workdir / "plan.json").read_text())["edits"][1] == {"edit": "refit", "ridge": 0.01, "rows": 6}
    assert not (workdir / ".chopped").exists()
    source, student = open_checkpoint(place.folder / "bfloat16"), open_checkpoint(workdir / "student")
    assert student.config == chop_config(source.config, plan) and student.config.kv_heads == 1
    plain = flatten(chop_params(plan, declare(source.config), load_params(source)))
    changed = set()
    for path, leaf in flatten(load_params(student)).items():
        assert leaf.dtype == plain[path].dtype == jnp.bfloat16
        if not np.array_equal(np.asarray(leaf), np.asarray(plain[path])):
            changed.add(path)
    assert changed and changed <= {OUTPUT, DOWN}
    assert "least squares" in (workdir / "student" / "README.md").read_text()
    assert "chop: done before, skipped" in runs.done(place, "chop", place.arguments(workdir, *settings)).stdout


def test_training_before_the_chop_is_refused(place: runs.Place, tmp_path: pathlib.Path) -> None:
    settings = ("plan.refit=True", "train.steps_before_chop=2")
    ended = runs.run(place, "train", place.arguments(tmp_path / "run", *settings))
    assert ended.status == 2 and len(ended.stderr.strip().splitlines()) == 1
    assert "train.steps_before_chop" in ended.stderr and "refit" in ended.stderr
    assert not (tmp_path / "run" / "student").exists()
