"""Lower bounds on latency from a chip's peak arithmetic and memory bandwidth."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Num

from chopjax import checks
from chopjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one chip.

    Attributes:
        flops: dense bfloat16 FLOP/s.
        bandwidth: bytes/s between memory and cores.
        memory: bytes.
    """

    flops: float
    bandwidth: float
    memory: float


_GIB = 2**30

# TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; the last of these gives memories in GiB. v5e and v6e by the
# pages' exact 819 and 1638 GB/s, which later versions round. GPUs: the SXM versions in NVIDIA's data sheets
# (nvidia.com/en-us/data-center/{a100,h100,h200,l4,l40s}, dgx-b200), without sparsity, memory in 10^9 bytes.
CHIPS: Mapping[str, Chip] = {
    "v4": Chip(275e12, 1228e9, 32 * _GIB),
    "v5e": Chip(197e12, 819e9, 16 * _GIB),
    "v5p": Chip(459e12, 2765e9, 95 * _GIB),
    "v6e": Chip(918e12, 1638e9, 32 * _GIB),
    "tpu7x": Chip(2307e12, 7380e9, 192 * _GIB),
    "a100": Chip(312e12, 2039e9, 80e9),
    "h100": Chip(989e12, 3350e9, 80e9),
    "h200": Chip(989e12, 4800e9, 141e9),
    "b200": Chip(2250e12, 8000e9, 180e9),
    "l4": Chip(121e12, 300e9, 24e9),
    "l40s": Chip(362e12, 864e9, 48e9),
}

# The share of a chip's memory for weights and cache; the rest is for activations and the runtime. vLLM's default.
USABLE = 0.9


def chip_named(name: str) -> Chip:
    """The chip of that name, in any case, with or without its maker's (`"TPU v5e"`).

    Raises:
        UserError: it is not in `CHIPS`.
    """
    short = name.lower().removeprefix("nvidia").strip()
    short = short.removeprefix("tpu").strip() if short not in CHIPS else short
    if short not in CHIPS:
        raise UserError(f"search.chip is {name!r}; {checks.near(short, CHIPS)}")
    return CHIPS[short]


def memory(chip: Chip, chips: int = 1) -> float:
    """Bytes that weights and KV cache may take on so many chips."""
    return USABLE * chips * chip.memory


def latency(
    flops: Num[np.ndarray, "*candidates"], bytes_read: Num[np.ndarray, "*candidates"], chip: Chip, chips: int = 1
) -> Float[np.ndarray, "*candidates"]:
    """Milliseconds that a step takes at least: the longer of its arithmetic and its reads, each at the chip's peak.

    A lower bound (Williams et al., 2009): real steps also wait for kernels to start, for transfers between chips, and
    seldom reach either peak. So it can rule a size out but never promises a speed, and it is most use as an order of
    candidates. Several chips are taken to share both evenly.

    Args:
        flops: of the step, for all sequences.
        bytes_read: weights and cache that the step reads, for all sequences.
    """
    return np.maximum(flops / (chips * chip.flops), bytes_read / (chips * chip.bandwidth)) * 1e3
