"""FLOPs of the kernels that a compiled module calls: Pallas for TPUs, cuDNN and cuBLAS for GPUs."""

import math
import re

from chopjax.aot.hlo_text import Computation, Instruction

# Products of attention: scores and their sum over values; in the backward pass scores again and a gradient of each of
# weights, queries, keys and values.
FORWARD, BACKWARD = 2, 5


def kernel_flops(instruction: Instruction, computation: Computation) -> float:
    """FLOPs of a `custom-call`: what a Pallas kernel says it takes, what those libraries take by formula; else none."""
    target = instruction.attribute(r'custom_call_target="([^"]*)"') or ""
    if target == "tpu_custom_call":
        return int(instruction.attribute(r'"cost_estimate":\{[^}]*"flops":"?(\d+)') or 0)
    if target.startswith("__cudnn$fmha"):
        return _attention(instruction, BACKWARD if "Backward" in target else FORWARD, computation)
    if target.startswith("__cublas$"):
        return _product(instruction, computation)
    return 0


def _attention(instruction: Instruction, products: int, computation: Computation) -> float:
    """Of causal attention what is seen: the kernels leave the rest out."""
    config = instruction.attributes
    _, _, queries, keys = scores = _numbers(config, r'"intermediate_tensor_shape":\s*\{.*?"dimensions":\s*')
    head_dim = computation[instruction.operands[0]].shapes[0].dims[-1]
    seen = (keys + 1) / (2 * keys) if '"mask_type": "CAUSAL"' in config and queries == keys else 1
    return products * 2 * math.prod(scores) * head_dim * seen


def _product(instruction: Instruction, computation: Computation) -> float:
    left = computation[instruction.operands[0]].shapes[0]
    inner = math.prod(left.dims[axis] for axis in _numbers(instruction.attributes, r'"lhs_contracting_dimensions":\s*'))
    return 2 * inner * math.prod(instruction.shapes[0].dims)


def _numbers(text: str, before: str) -> list[int]:
    found = re.search(before + r"\[([^\]]*)\]", text)
    return [int(number) for number in re.findall(r"\d+", found[1])] if found else []
