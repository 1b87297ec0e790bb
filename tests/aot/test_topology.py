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


@pytest.mark.parametrize("name", ["v5e", "v5e-16", "v9:2x2", "v5e:4xfour"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UserError, match=f"topology is '{name}'; give a kind of TPU and its grid"):
        topology.devices(name)


@needs_libtpu
def test_slices_that_there_are_not() -> None:
    with pytest.raises(UserError, match="topology v5e:3x3: libtpu knows no such slice"):
        topology.devices("v5e:3x3")


def test_without_libtpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"topology v5e:2x2: .* needs libtpu; pip install libtpu.*chopjax\[tpu\]"):
        topology.devices("v5e:2x2")
