"""Costs are kept where they can be, and what a compiler says of want of memory is read."""

import pathlib

import jax
import pytest

from chopjax import files
from chopjax.aot import cache, compiling, topology
from chopjax.aot.compiling import Compilation, Costs
from chopjax.errors import UserError
from chopjax.sharding.rules import MeshConfig


class Step:
    mesh = MeshConfig()

    def lower(self, devices: object) -> jax.stages.Lowered:
        return jax.jit(lambda: 1).lower()


def test_a_folder_that_cannot_be_written_to(tmp_path: pathlib.Path) -> None:
    (tmp_path / "aot").touch()
    with pytest.raises(UserError, match="^workdir: .*/aot cannot be written to .*; name another folder$"):
        cache.ready(tmp_path / "aot")
    cache.ready(tmp_path / "run" / "aot")
    assert list((tmp_path / "run" / "aot").iterdir()) == []


def test_costs_that_cannot_be_kept_are_said_all_the_same(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = Costs(10, None, {}, {}, 0.0, 0.0, None)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(topology, "devices", lambda slices: jax.devices())
    monkeypatch.setattr(compiling, "compile_lowered", lambda *_, **__: Compilation(costs, None))
    monkeypatch.setattr(files, "write_json", full)
    assert cache.costs(Step(), topology.parse("v5e-8"), tmp_path) == costs
    assert "cannot be written (No space left on device): this will be compiled again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        ("Ran out of memory in memory space hbm. Used 21.75G of 15.75G hbm. Exceeded", 21.75, 15.75),
        ("required for HLO temporaries (48.81G) exceeds available HBM (15.75G).", 48.81, 15.75),
        ("Attempting to reserve 3.95G at the bottom of memory.", None, None),
    ],
)
def test_want_of_memory(message: str, needed: float | None, available: float | None) -> None:
    class Lowered:
        def compile(self, options: object) -> None:
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")

    found = compiling.compile_lowered(Lowered(), 0.0).costs
    assert found.peak_bytes is None and Costs.from_json(found.to_json()) == found
    assert found.needed_bytes == (needed and round(needed * 2**30))
    assert found.available_bytes == (available and round(available * 2**30))
