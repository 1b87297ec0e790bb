"""Slices of TPUs by name."""

import importlib.util

import jax
import pytest
from aot.slices import needs_libtpu

from chopjax.aot import topology
from chopjax.errors import UserError


@needs_libtpu
@pytest.mark.parametrize(("name", "count"), [("v5e:2x2", 4), ("v5p:2x2x1", 4), ("v4:2x2x2", 8), ("v6e:4x4", 16)])
def test_devices_of_a_slice(name: str, count: int) -> None:
    devices = topology.devices(name)
    assert len(devices) == count and {device.platform for device in devices} == {"tpu"}
    assert jax.default_backend() == "cpu"


@pytest.mark.parametrize(
    ("name", "grid", "chips", "devices"),
    [
        ("v5e-1", "v5e:1x1", 1, 1),
        ("v5e-8", "v5e:2x4", 8, 8),
        ("v5e-64", "v5e:8x8", 64, 64),
        ("v6e-256", "v6e:16x16", 256, 256),
        ("v5p-8", "v5p:2x2x1", 4, 4),
        ("v5p-32", "v5p:2x2x4", 16, 16),
        ("v4-512", "v4:4x8x8", 256, 256),
        ("tpu7x-8", "tpu7x:2x2x1", 4, 8),
        ("2*v5e-16", "2*v5e:4x4", 32, 32),
        ("v5e:2x4", "v5e:2x4", 8, 8),
        ("h100:8", "h100:8", 8, 8),
        ("3*h200:4", "3*h200:4", 12, 12),
    ],
)
def test_names(name: str, grid: str, chips: int, devices: int) -> None:
    found = topology.parse(name)
    assert (str(found), found.chips, found.devices) == (grid, chips, devices)
    assert topology.parse(str(found)) == found


@needs_libtpu
def test_two_slices() -> None:
    devices = topology.devices("2*v5e-4")
    assert [device.slice_index for device in devices] == [0] * 4 + [1] * 4


@pytest.mark.parametrize("name", ["v5e", "v5e-", "v9:2x2", "v5e:4xfour", "2v5e-16", "h100", "b100:8"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UserError, match=f"topology is '{name}'; give a kind of TPU"):
        topology.devices(name)


@pytest.mark.parametrize("name", ["v5e-12", "v5p-3", "v5p-1", "v5e-0"])
def test_sizes_that_there_are_not(name: str) -> None:
    with pytest.raises(UserError, match=f"topology {name}: no slice of "):
        topology.devices(name)


@pytest.mark.parametrize("name", ["h100-8", "h100:9", "h200:2x4"])
def test_boxes_that_there_are_not(name: str) -> None:
    with pytest.raises(UserError, match=f"topology {name}: a box has at most 8 GPUs; give h[12]00:8, or"):
        topology.devices(name)


@needs_libtpu
def test_slices_that_there_are_not() -> None:
    with pytest.raises(UserError, match="topology v5e:3x3: libtpu knows no such slice"):
        topology.devices("v5e:3x3")


def test_without_libtpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"topology v5e:2x2: .* needs libtpu; pip install libtpu.*chopjax\[tpu\]"):
        topology.devices("v5e:2x2")
