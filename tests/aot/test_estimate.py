"""Estimates from sizes alone: exact where they can be, and near a compile."""

import dataclasses

import pytest
from aot.slices import needs_libtpu

from chopjax.aot import compiling, hardware, topology
from chopjax.aot.estimate import Estimate
from chopjax.aot.steps import TrainingStep
from chopjax.distill.config import LossConfig
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import count, flops_per_token
from chopjax.sharding.rules import MeshConfig
from chopjax.train.flops import step_flops
from chopjax.train.step import StepConfig

STUDENT = ModelConfig(layers=6, embed=1024, kv_heads=4, q_per_kv=2, head_dim=128, mlp=2816, vocab=8192, positions=2048)
TEACHER = dataclasses.replace(STUDENT, embed=1280, mlp=3584)
STEP = TrainingStep(STUDENT, 8, 1024, LossConfig(chunk=1024), TEACHER, StepConfig(remat="full"))
# Half of that in every direction, which compiles in half the time.
HALF = dataclasses.replace(
    STEP,
    student=dataclasses.replace(STUDENT, embed=512, q_per_kv=1, mlp=1408, vocab=4096),
    teacher=dataclasses.replace(TEACHER, embed=640, q_per_kv=1, mlp=1792, vocab=4096),
    length=512,
)


def with_step(**changes: object) -> TrainingStep:
    return dataclasses.replace(STEP, step=dataclasses.replace(STEP.step, **changes))


def test_state_is_counted_exactly() -> None:
    found = Estimate(STEP, 4).memory()
    assert found.parameters == count(STUDENT) and found.optimizer == 2 * count(STUDENT)  # 4 bytes over 4 devices
    assert found.teacher == count(TEACHER) / 2 and found.compute_copy == count(STUDENT) / 2
    assert found.activations == 6 * 2 * 1024 * 1024 * 2  # layers, rows, tokens, channels, bytes


def test_what_a_lever_does() -> None:
    base = Estimate(STEP, 4).memory()
    assert Estimate(with_step(accumulate=2), 4).memory().activations == base.activations / 2
    assert Estimate(with_step(remat="dots"), 4).memory().activations > base.activations
    assert Estimate(with_step(remat="none"), 4).memory().peak > Estimate(with_step(remat="dots"), 4).memory().peak
    assert Estimate(with_step(compute_dtype="float32"), 4).memory().compute_copy == 0
    wider = dataclasses.replace(STEP, mesh=MeshConfig(tensor=2))
    assert Estimate(wider, 4).memory().parameters == pytest.approx(base.parameters, rel=1e-3)  # norms are whole
    assert Estimate(dataclasses.replace(STEP, rows=16), 8).memory().parameters == base.parameters / 2


def test_wire_of_plain_fsdp() -> None:
    """Weights gathered there and back and gradients scattered, the teacher's gathered once: 3/4 of each over four.

    Of each token its embedding, there and back; its hidden state to all four, and its gradient back.
    """
    matrices = {
        model: model.layers * model.embed * (2 * model.q_heads * 128 + 2 * model.kv_heads * 128 + 3 * model.mlp)
        for model in (STUDENT, TEACHER)
    }
    found = Estimate(STEP, 4).wire()
    tokens = 2 * 1024 * ((2 + 2 * 4) * 1024 + (1 + 4) * 1280)
    assert found.ici == pytest.approx(0.75 * 2 * (3 * matrices[STUDENT] + matrices[TEACHER] + tokens))
    assert found.dcn == 0
    copies = dataclasses.replace(STEP, rows=16, mesh=MeshConfig(data=2, dcn_data=2))
    across = Estimate(copies, 8).wire()
    assert across.dcn == pytest.approx(count(STUDENT) * 2 / 4)  # once each way between two, of what a device holds
    assert across.ici == pytest.approx(found.ici)
    # Parameters split over both slices: each fetches the other's four of eight parts, a half, once.
    split = Estimate(dataclasses.replace(STEP, rows=16, mesh=MeshConfig(dcn_fsdp=2)), 8).wire()
    one = Estimate(dataclasses.replace(STEP, rows=16), 8).wire()
    assert split.dcn == pytest.approx(one.ici / 7) and split.ici + split.dcn == pytest.approx(one.ici)


def test_flops_by_hand() -> None:
    """A model small enough to count: one layer, two channels."""
    tiny = ModelConfig(layers=1, embed=2, kv_heads=1, q_per_kv=3, head_dim=4, mlp=5, vocab=7, positions=8)
    # Products of a token: q 2x12, k and v 2x4 each, o 12x2, gate, up and down 2x5 each; unembedding 2x7.
    blocks = 2 * (24 + 16 + 24 + 30)
    # In a row of 3 tokens they see 1, 2 and 3 keys: 2 on average, for scores and for values.
    forward = blocks + 2 * 14 + 2 * 2 * 12 * 2
    assert flops_per_token(tiny, 3) == forward
    found = step_flops(tiny, tiny, tokens=6, length=3, remat="full")
    assert found.student == 6 * 3 * forward and found.teacher == 6 * forward
    assert found.recomputed == 6 * (forward - 28)
    assert found.model == 6 * 4 * forward and found.hardware == found.model + found.recomputed
    assert step_flops(tiny, tiny, 6, 3, learning=True).teacher == found.student
    assert step_flops(tiny, None, 6, 3).model == found.student


@needs_libtpu
@pytest.mark.parametrize("topology_name", ["v5e:2x2", "v5p:2x2x1"])
def test_beside_a_compile(topology_name: str) -> None:
    """An upper bound of the peak, since so small a step lies in the cores' own memory in part; and of the traffic."""
    slices = topology.parse(topology_name)
    costs = compiling.compile(HALF, topology.devices(slices)).costs
    estimate = Estimate(HALF, slices.devices)
    assert costs.peak_bytes is not None
    assert costs.peak_bytes <= estimate.memory().peak <= 1.4 * costs.peak_bytes
    assert sum(costs.at_peak.values()) == pytest.approx(costs.peak_bytes, rel=0.02)
    for kind in ("parameters", "optimizer", "teacher"):  # what is in the cores' memory at that time is not counted
        assert 0.85 <= costs.at_peak[kind] / getattr(estimate.memory(), kind) <= 1.01
    if costs.statistics is not None:
        assert sum(costs.statistics.wire_bytes.values()) == pytest.approx(estimate.wire().ici, rel=0.15)
    device = hardware.device(slices)
    if costs.statistics is not None:  # so small a step is held up by much else than its arithmetic
        assert 0.2 <= estimate.time(device).step / (costs.statistics.cycles / device.clock) <= 1.2
