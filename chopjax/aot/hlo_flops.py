"""FLOPs of the matrix products of a compiled module; TPU compilers write most of them as convolutions."""

import math
import re

import numpy as np

from chopjax.aot.hlo_text import Computation, Instruction, Shape


def matmul_flops(instruction: Instruction, computation: Computation) -> float:
    """FLOPs of a `dot` or `convolution`: two for each multiplication, those with padding left out."""
    left, right = (computation[name].shapes[0] for name in instruction.operands[:2])
    if instruction.opcode == "dot":
        contracted = instruction.attribute(r"lhs_contracting_dims=\{([0-9,]*)\}") or ""
        inner = math.prod(left.dims[int(axis)] for axis in contracted.split(",") if axis)
        return 2 * inner * math.prod(instruction.shapes[0].dims)
    return _convolution(instruction, left, right)


def _convolution(instruction: Instruction, left: Shape, right: Shape) -> float:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes.replace("?", "x"))
    if labels is None:
        return 0
    # Size of each labelled axis: b batch, f feature, i and o input and output features, digits spatial.
    of_left, of_right, of_out = (
        dict(zip(names, shape.dims, strict=True))
        for names, shape in zip(labels.groups(), (left, right, instruction.shapes[0]), strict=True)
    )
    spatial = sorted(name for name in of_right if name.isdigit())
    window = _window(instruction, len(spatial))
    taps = 1
    for axis, name in enumerate(spatial):
        taps *= _taps(of_left[name], of_right[name], of_out[name], *(values[axis] for values in window))
    batch_groups = int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
    return 2 * taps * of_right["i"] * of_out["f"] * (of_left["b"] // batch_groups)


def _window(instruction: Instruction, axes: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Stride, padding before, and dilation of both sides, for each spatial axis."""
    text = instruction.attribute(r"window=\{([^}]*)\}") or ""
    fields = dict(field.split("=") for field in text.split())

    def numbers(name: str, otherwise: int) -> list[int]:
        values = fields[name].split("x") if name in fields else [str(otherwise)] * axes
        return [int(value.rpartition("_")[0] or value) if name == "pad" else int(value) for value in values]

    return numbers("stride", 1), numbers("pad", 0), numbers("lhs_dilate", 1), numbers("rhs_dilate", 1)


def _taps(size: int, kernel: int, out: int, stride: int, padding: int, dilation: int, kernel_dilation: int) -> int:
    """Pairs of an output and a kernel position along one axis that meet an input and not padding."""
    width = (size - 1) * dilation + 1
    at = np.arange(out, dtype=np.int64) * stride - padding
    met = 0
    for place in range(kernel):
        inputs = at + place * kernel_dilation
        met += int(np.count_nonzero((inputs >= 0) & (inputs < width) & (inputs % dilation == 0)))
    return met
