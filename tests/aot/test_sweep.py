"""Which settings are looked at, which are compiled, and which are best."""

import dataclasses
import itertools
import math

import pytest
from aot.test_estimate import STEP

from chopjax.aot import hardware, sweep, topology
from chopjax.aot.steps import TrainingStep
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
    for one, other in itertools.pairwise(found):
        assert one.seconds <= other.seconds * (1 + sweep.TIE)


def many(rows: int, mesh: MeshConfig = NOW.mesh) -> tuple[TrainingStep, list[sweep.Candidate]]:
    now = dataclasses.replace(NOW, rows=rows, mesh=mesh)
    return now, sweep.candidates(now, SLICES, DEVICE)


def test_what_is_configured_comes_before_what_is_no_faster() -> None:
    now = dataclasses.replace(NOW, step=dataclasses.replace(NOW.step, remat="none"))
    assert sweep.candidates(now, SLICES, DEVICE)[0].step == now


def test_few_large_micro_batches_come_first() -> None:
    now, found = many(2048)
    first = found[0]
    assert first.seconds <= found[1].seconds * (1 + sweep.TIE) and first.step.micro_rows // 8 > 16
    # Whatever else is as it is there, and no slower, has more micro-batches or takes too much.
    for other in found:
        same = other.step.mesh == first.step.mesh and other.step.step.remat == first.step.step.remat
        if same and other.step.step.accumulate < first.step.step.accumulate:
            assert other.peak > sweep.SAFE * DEVICE.memory
    assert first.peak <= sweep.SAFE * DEVICE.memory


def test_advice_changes_as_little_as_it_can() -> None:
    now, found = many(4096, MeshConfig())
    (own,) = (one for one in found if not one.changed(now))
    assert own.peak > DEVICE.memory
    best = sweep.nearest(found, now, DEVICE, 0, own.peak)
    assert best is not None and list(best.changed(now)) == ["train.accumulate"]
    assert best.peak <= sweep.SAFE * DEVICE.memory
    # Half as many micro-batches would not have been enough.
    half = best.step.step.accumulate // 2
    (larger,) = (one for one in found if one.changed(now) == {"train.accumulate": half})
    assert larger.peak > sweep.SAFE * DEVICE.memory
    # What needs twice its estimate is given half as much.
    more = sweep.nearest(found, now, DEVICE, 2 * own.peak, own.peak)
    assert more is not None and more.step.step.accumulate == 2 * best.step.step.accumulate
    assert sweep.nearest(found, now, DEVICE, 1e6 * own.peak, own.peak) is None


def test_a_size_that_is_left_open_needs_no_change() -> None:
    now, found = many(32, MeshConfig(fsdp=-1))
    tensor = next(one for one in found if one.step.mesh.tensor == 2 and one.step.mesh.data == 1)
    assert "mesh.fsdp" not in tensor.changed(now) and tensor.changed(now)["mesh.tensor"] == 2
    assert tensor.changed(NOW)["mesh.fsdp"] == 4


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
    ("peaks", "seconds", "best", "fastest"),
    [
        ([3, 2, 1], [1, 2, 3], [1, 1, 1], 0),
        ([3, 2, 3], [1, 1, 2], [0, 1, 0], 1),
        ([1, 1], [1, 1], [1, 1], 0),
        ([2, 1], [1, 1 + 1e-9], [0, 1], 1),  # as fast, as far as anyone sees
        ([math.inf, 1], [1, 2], [0, 1], 1),
    ],
)
def test_the_fastest_is_on_the_frontier(
    peaks: list[float], seconds: list[float], best: list[int], fastest: int
) -> None:
    assert sweep.frontier(peaks, seconds) == [bool(one) for one in best]
    assert sweep.fastest(peaks, seconds) == fastest
