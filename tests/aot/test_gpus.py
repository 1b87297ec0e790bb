"""Boxes of GPUs, compiled for on any machine."""

import dataclasses
import importlib.util
import re

import jax
import pytest
from aot.slices import needs_cuda
from aot.test_steps import STUDENT, TEACHER

from chopjax.aot import compiling, gpus, hardware, steps, topology
from chopjax.distill.config import LossConfig
from chopjax.errors import UserError
from chopjax.models.config import LayerKind
from chopjax.models.parameters import count
from chopjax.search.roofline import CHIPS
from chopjax.sharding.rules import MeshConfig
from chopjax.train.step import StepConfig


def test_without_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^topology 2\*h100:8: compiling for GPUs needs .*pip install 'chopjax\[cuda\]'$"
    ):
        topology.devices("2*h100:8")


def test_without_any_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """`jax_plugins` is no package of its own: where nothing is in it, asking for a part of it fails."""

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", missing)
    with pytest.raises(UserError, match="topology h200:4: compiling for GPUs needs JAX's CUDA plugin"):
        topology.devices("h200:4")


def test_without_cudnn() -> None:
    class Step:
        mesh = MeshConfig()

        def lower(self, devices: object) -> jax.stages.Lowered:
            raise RuntimeError("cuDNN not found.")

    with pytest.raises(UserError, match=r"^mesh\.attention: GPUs compute attention with cuDNN, .*chopjax\[cuda\]"):
        compiling.lower(Step(), [])


@pytest.mark.parametrize("kind", gpus.KINDS)
def test_what_the_compiler_is_told(kind: str) -> None:
    text = gpus.target_config(kind, "13.0.0")
    fields = dict(re.findall(r"^  (\w+):? (.+)$", text, flags=re.MULTILINE))
    assert int(fields["device_memory_size"]) == CHIPS[kind].memory
    assert int(fields["memory_bandwidth"]) == CHIPS[kind].bandwidth
    # Four tensor cores a multiprocessor, of 512 multiplications in bfloat16 a cycle each (the H100 white paper), reach
    # the data sheet's peak at a clock that the compiler's highest is not below.
    needed = CHIPS[kind].flops / (int(fields["core_count"]) * 4 * 512 * 2)
    assert 0.8e9 * float(fields["clock_rate_ghz"]) < needed <= 1e9 * float(fields["clock_rate_ghz"])
    assert text.count("{") == text.count("}")


def test_peaks() -> None:
    one = hardware.device(topology.parse("2*h200:8"))
    assert (one.memory, one.flops, one.clock) == (141e9, 989e12, None)
    assert one.taken == 0.75 * one.memory and one.bandwidth > one.ici > one.host > one.dcn > 0


@needs_cuda
def test_devices_of_boxes() -> None:
    devices = topology.devices("2*h100:4")
    assert [device.process_index for device in devices] == [0] * 4 + [1] * 4
    assert devices[0].platform == "gpu" and "H100" in devices[0].device_kind
    assert jax.default_backend() == "cpu"


@needs_cuda
def test_distillation_step() -> None:
    """Masters and moments in their shards, attention by cuDNN, and collectives of several arrays at a time."""
    student = dataclasses.replace(STUDENT, kinds=(LayerKind(),), kind_of_layer=(), kv_heads=2)
    teacher = dataclasses.replace(student, embed=TEACHER.embed, head_dim=TEACHER.head_dim)
    wanted = steps.TrainingStep(
        student, 8, 200, LossConfig(chunk=256), teacher, StepConfig(remat="full"), mesh=MeshConfig(fsdp=8)
    )
    done = compiling.compile(wanted, topology.devices("h100:8"))
    costs = done.costs
    assert done.compiled is not None and costs.peak_bytes is not None and costs.statistics is not None
    assert "__cudnn$fmha" in done.compiled.as_text()
    arguments = (12 * count(student) + 2 * count(teacher)) / 8
    assert arguments <= costs.memory["arguments"] <= 1.05 * arguments
    assert costs.peak_bytes >= costs.memory["arguments"] and sum(costs.at_peak.values()) == costs.peak_bytes
    found = costs.statistics
    assert found.unknown_loops == 0 and found.kernel_flops > 0
    # In bfloat16 gradients of layers, and those of hidden states, which each device's columns of the logits give.
    layers, hidden = count(student) - 2 * student.vocab * student.embed, wanted.rows * wanted.length * student.embed
    assert found.wire_bytes["reduce-scatter"] == pytest.approx(2 * (layers + hidden) * 7 / 8, rel=0.01)
