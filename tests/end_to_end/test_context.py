"""Rows split along their length over hosts: the same losses as in one process on one device."""

import json
import pathlib

import pytest
from end_to_end import hosts, runs

SHORT = ("train.steps=4", "train.save_every=4", "evaluate.prompts=()")


def test_rows_go_over_hosts(place: runs.Place, tmp_path: pathlib.Path) -> None:
    """Two hosts of two devices, and a row goes over all four: both hosts bring the same rows."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    runs.done(place, "train", place.arguments(alone, *SHORT))
    over = ("mesh.fsdp=1", "mesh.context=4")
    hosts.done(place, "train", place.arguments(together, *SHORT, *over), 2, 2)
    ours, theirs = runs.metrics(together), runs.metrics(alone)
    assert len(ours) == len(theirs) == 4
    for one, other in zip(ours, theirs, strict=True):
        for name in ("loss", "kl", "grad_norm", "tokens"):
            assert one[name] == pytest.approx(other[name], rel=1e-5), name
    found, wanted = (json.loads((folder / "evaluation.json").read_text()) for folder in (together, alone))
    for name, figures in wanted.items():
        assert found[name]["nll"] == pytest.approx(figures["nll"], rel=1e-5)
    table = (together / "sharding.txt").read_text()
    assert table.count("layers/mlp/up/kernel") == 2 and " context " in table


def test_a_length_that_the_mesh_does_not_divide(place: runs.Place, tmp_path: pathlib.Path) -> None:
    wrong = place.arguments(tmp_path / "wrong", "mesh.fsdp=1", "mesh.context=5")
    ended = runs.run(place, "train", wrong, devices=5)
    assert ended.status == 2
    assert "data.length is 24, which mesh.context=5 does not divide" in ended.stderr
