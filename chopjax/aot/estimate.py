"""What a training step will take, from sizes alone: in microseconds, where a compiler takes minutes.

It serves to sort hundreds of settings, of which the best are then compiled; it is no promise. Constants that are no
sizes were fitted to compiled steps of 3.5B to 8B models on 16 chips of v5e (`benchmarks/pods.py`).
"""

import dataclasses
import math

from chopjax.aot.hardware import Device
from chopjax.aot.steps import TrainingStep
from chopjax.axes import Role
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import declare
from chopjax.sharding.rules import RULES, assign
from chopjax.train.flops import WHOLE, step_flops

MASTER, HALF = 4, 2  # bytes of float32 and bfloat16
MOMENTS = {"adamw": 2, "lion": 1}
# Share of the peak arithmetic that compiled steps reach where nothing else holds them up.
EFFICIENCY = 0.82


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device; the first four and activations all the time, the others at moments of their own.

    Attributes:
        parameters: float32 masters.
        optimizer: moments.
        teacher: the teacher's parameters, and moments if it learns.
        compute_copy: parameters in the compute dtype.
        gradients: of all parameters.
        activations: what the forward pass keeps for the backward pass.
        loss: logits of a chunk with what is made of them, and the gradient of the unembedding.
        working: weights of a layer that are gathered, and activations inside it.
    """

    parameters: float
    optimizer: float
    teacher: float
    compute_copy: float
    gradients: float
    activations: float
    loss: float
    working: float

    @property
    def in_loss(self) -> bool:
        """Whether the most is held in the loss; else it is at the end of the backward pass."""
        return self.loss > self.gradients + self.working

    @property
    def peak(self) -> float:
        """The most at any time."""
        return sum(self.at_peak.values())

    @property
    def at_peak(self) -> dict[str, float]:
        """What is held at the peak, by the names of `live.KINDS`."""
        return {
            "parameters": self.parameters,
            "optimizer": self.optimizer,
            "teacher": self.teacher,
            "compute copy": self.compute_copy,
            "activations": self.activations,
            "gradients": 0.0 if self.in_loss else self.gradients,
            "loss": self.loss if self.in_loss else 0.0,
            "other": 0.0 if self.in_loss else self.working,
        }


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of one step, each as if nothing else had to be waited for.

    Attributes:
        compute: products, at the share of the peak that compiled steps reach.
        memory: weights, state and activations between memory and cores.
        ici: collectives inside a slice.
        dcn: collectives between slices.
        host: what is kept in the memory of the host, there and back.
    """

    compute: float
    memory: float
    ici: float
    dcn: float
    host: float

    @property
    def step(self) -> float:
        """The longest of them: the others run meanwhile."""
        return max(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Wire:
    """Bytes that one device sends in a step.

    Attributes:
        ici: inside its slice.
        dcn: between slices.
    """

    ici: float
    dcn: float


class Estimate:
    """Memory, traffic and time of a training step on a number of devices.

    Args:
        step: the step.
        devices: number of devices, in as many slices as the step's mesh goes over.

    Raises:
        UserError: the mesh cannot hold the models, or is not made up by the devices.
    """

    def __init__(self, step: TrainingStep, devices: int) -> None:
        self._step, self._devices = step, devices
        self._mesh = step.mesh.shape(devices)
        self._rows = math.prod(self._mesh[axis] for axis in RULES["batch"])
        self._cells = math.prod(self._mesh[axis] for axis in RULES["length"])
        # Tokens of one device in one micro-batch.
        self._tokens = step.micro_rows * step.length / (self._rows * self._cells)
        self._bytes = MASTER if step.step.compute_dtype == "float32" else HALF
        self._student = self._held(step.student)
        self._teacher = 0.0 if step.teacher is None else self._held(step.teacher)

    def memory(self) -> Memory:
        """Bytes of one device."""
        step, student = self._step, self._student
        teacher = self._teacher * self._bytes
        if step.learning:
            teacher = self._teacher * (MASTER * (1 + MOMENTS[step.optimizer.name]) + 2 * self._bytes)
        gradients = student * (self._bytes if step.step.accumulate == 1 else MASTER + self._bytes)
        return Memory(
            student * MASTER,
            student * MASTER * MOMENTS[step.optimizer.name],
            teacher,
            0.0 if self._bytes == MASTER else student * self._bytes,
            gradients,
            0.0 if self._offloads else self._kept_all,
            self._loss(),
            self._working(step.student),
        )

    @property
    def _offloads(self) -> bool:
        return self._step.step.remat.startswith("offload")

    @property
    def _kept_all(self) -> float:
        step = self._step
        return self._kept(step.student) + (self._kept(step.teacher) if step.learning and step.teacher else 0.0)

    def wire(self) -> Wire:
        """Bytes that one device sends in a step."""
        shards = self._mesh["fsdp"] * self._mesh["context"]
        whole = self._through_fsdp(shards)
        # Of arrays that are split over slices too, each slice fetches the parts of the others once.
        between = (self._step.mesh.slices["fsdp"] - 1) / shards * whole
        inside = (shards - 1) / shards * whole - between
        copies, slices = self._mesh["data"], self._step.mesh.slices["data"]
        held, near = self._student * self._bytes, copies // slices
        inside += 2 * (near - 1) / near * held + self._through_tensor()
        return Wire(inside, between + 2 * (slices - 1) / slices * held)

    def _through_fsdp(self, shards: int) -> float:
        """Bytes of the arrays that devices gather from each other, or scatter to each other, in a step."""
        step = self._step
        # What learns: once on the way there, once on the way back, and the gradients.
        weights = 3 * self._gathered_layers(step.student)
        if step.teacher is not None:
            weights += (3 if step.learning else 1) * self._gathered_layers(step.teacher)
        return self._bytes * step.step.accumulate * (weights + self._tokens * self._tokens_wide(shards))

    def _through_tensor(self) -> float:
        """Bytes sent for sums of the residual stream: two a layer, there, where blocks are made again, and back."""
        step, tensor = self._step, self._mesh["tensor"]
        wide = step.student.layers * step.student.embed * 2 * (3 if step.step.remat in WHOLE else 2)
        if step.teacher is not None:
            wide += 2 * step.teacher.layers * step.teacher.embed
        return 2 * (tensor - 1) / tensor * self._bytes * self._tokens * wide * step.step.accumulate

    def _tokens_wide(self, shards: int) -> float:
        """Values that a device sends for each of its own tokens, before the share that stays.

        Embeddings are exchanged for tokens, there and back; hidden states go to all devices that hold columns of the
        logits, and their gradients come back.
        """
        step = self._step
        wide = (2 + 2 * shards) * step.student.embed
        return wide + ((1 + shards) * step.teacher.embed if step.teacher is not None else 0)

    def time(self, device: Device) -> Time:
        """Seconds of one step."""
        step, wire, memory = self._step, self.wire(), self.memory()
        flops = step_flops(
            step.student, step.teacher, step.rows * step.length, step.length, step.step.remat, step.learning
        )
        # The state is read and written once, weights twice or thrice for each micro-batch, kept activations twice.
        state = 2 * (memory.parameters + memory.optimizer) + 2 * memory.gradients
        gathered = 3 * self._bytes * self._gathered_layers(step.student)
        if step.teacher is not None:
            gathered += self._bytes * self._gathered_layers(step.teacher)
        moved = state + (gathered + 4 * memory.activations + 4 * self._inside(step.student)) * step.step.accumulate
        return Time(
            flops.hardware / self._devices / device.flops / EFFICIENCY,
            moved / device.bandwidth,
            wire.ici / device.ici,
            wire.dcn / device.dcn,
            2 * self._kept_all * step.step.accumulate / device.host if self._offloads else 0.0,
        )

    def _held(self, config: ModelConfig) -> float:
        """Parameters of one device."""
        held = 0.0
        for path, leaf in declare(config).items():
            spec, _ = assign(leaf.axes, leaf.shape(config.sizes), self._mesh, self._step.mesh.fallbacks, path)
            held += leaf.size(config.sizes) / math.prod(self._mesh[axis] for entry in spec for axis in entry)
        return held

    def _gathered_layers(self, config: ModelConfig) -> float:
        """Weights of all layers as one device sees them once they are gathered over `fsdp`."""
        layers = (leaf.size(config.sizes) for leaf in declare(config).values() if leaf.role is Role.MATRIX)
        return sum(layers) / self._mesh["tensor"]

    def _kept(self, config: ModelConfig) -> float:
        """Bytes that the forward pass keeps for the backward pass, wherever."""
        wide, remat = float(config.embed), self._step.step.remat
        products = 2 * (config.q_heads + config.kv_heads) * config.head_dim + config.mlp * (3 if config.gated else 2)
        if remat in ("dots", "offload_dots"):
            wide += config.embed * 2 + products / self._mesh["tensor"]
        elif remat == "none":
            wide += config.embed * 6 + 1.5 * products / self._mesh["tensor"]
        return config.layers * self._tokens * wide * self._bytes

    def _inside(self, config: ModelConfig) -> float:
        """Bytes of activations inside one layer in its backward pass."""
        split = 5 * config.mlp + 4 * config.q_heads * config.head_dim
        return self._tokens * self._bytes * (6 * config.embed + split / self._mesh["tensor"])

    def _working(self, config: ModelConfig) -> float:
        # The next layer is gathered while one is worked on; gradients are scattered one by one.
        gathered = 2 * self._gathered_layers(config) / config.layers * self._bytes if self._mesh["fsdp"] > 1 else 0.0
        return gathered + self._inside(config)

    def _loss(self) -> float:
        step, columns = self._step, math.prod(self._mesh[axis] for axis in RULES["unembedded"])
        own = max(1.0, step.loss.chunk / (self._rows * self._cells))
        chunk = min(own * self._mesh["fsdp"], self._tokens * self._mesh["fsdp"])
        vocab = step.student.vocab / columns
        # The student's logits, their derivative and what is between; the teacher's likewise.
        logits = chunk * vocab * MASTER * (5 if step.teacher is not None and step.loss.teacher_terms else 3)
        tables = vocab * step.student.embed * (MASTER + self._bytes)
        hidden = 2 * self._tokens * step.student.embed * self._bytes
        if step.teacher is not None:
            tables += vocab * step.teacher.embed * self._bytes
            hidden += self._tokens * step.teacher.embed * self._bytes
        return logits + tables + hidden
