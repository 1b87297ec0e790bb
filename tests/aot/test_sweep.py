"""Which settings are looked at, which are compiled, and which are best."""

import dataclasses

import pytest
from aot.test_estimate import STEP

from chopjax.aot import hardware, sweep, topology
from chopjax.models import decoder
from chopjax.sharding.rules import MeshConfig

SLICES = topology.parse("v5e-8")
DEVICE = hardware.device(SLICES)
NOW = dataclasses.replace(STEP, rows=32, mesh=MeshConfig().filled(8))


def test_every_candidate_makes_the_same_batch_on_all_devices() -> None:
    found = sweep.candidates(NOW, SLICES, DEVICE)
    assert any(one.step == NOW for one in found)
    assert len({(one.step.mesh, one.step.step) for one in found}) == len(found)
    assert {one.step.step.remat for one in found} == set(decoder.REMAT)
    for one in found:
        mesh = one.step.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor == 8
        assert one.step.rows == 32 and one.step.micro_rows % (mesh.data * mesh.fsdp) == 0
    # Four heads of keys are not split in eight without leave.
    assert max(one.step.mesh.tensor for one in found) == 4
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)


def test_only_what_may_fit_is_compiled_and_what_is_set_now() -> None:
    found = sweep.candidates(NOW, SLICES, DEVICE)
    small = dataclasses.replace(DEVICE, memory=sorted(one.peak for one in found)[len(found) // 3])
    fits = sweep.fitting(found, small)
    assert 0 < len(fits) < len(found)
    chosen = sweep.worth_compiling(fits, NOW, count=6)
    assert len(chosen) == len({one.step for one in chosen}) == 6
    assert fits[0] in chosen
    assert (NOW in [one.step for one in chosen]) == (NOW in [one.step for one in fits])
    assert len({one.step.mesh for one in chosen}) > 1


def test_slices_hold_copies() -> None:
    found = sweep.candidates(
        dataclasses.replace(NOW, mesh=MeshConfig(data=2, dcn_data=2)), topology.parse("2*v5e-4"), DEVICE
    )
    assert {one.step.mesh.dcn_data for one in found} == {2}
    assert all(one.step.mesh.data % 2 == 0 for one in found)


@pytest.mark.parametrize(
    ("peaks", "seconds", "best"),
    [([3, 2, 1], [1, 2, 3], [1, 1, 1]), ([3, 2, 3], [1, 1, 2], [0, 1, 0]), ([1, 1], [1, 1], [1, 1])],
)
def test_frontier(peaks: list[float], seconds: list[float], best: list[int]) -> None:
    assert sweep.frontier(peaks, seconds) == [bool(one) for one in best]
