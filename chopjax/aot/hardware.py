"""Peaks of the chips that programs are compiled for: arithmetic, memory, interconnect."""

import dataclasses
from collections.abc import Mapping

from chopjax.aot import gpus
from chopjax.aot.topology import Slices
from chopjax.search.roofline import CHIPS


@dataclasses.dataclass(frozen=True)
class Links:
    """What joins chips, and the clock that the compiler counts in.

    Attributes:
        ici: bytes/s that a chip can send to others of its slice or box, over all its links.
        dcn: bytes/s that a chip's share of its host can send to other slices or boxes.
        host: bytes/s between a chip and the memory of its host, one way.
        clock: cycles/s; None where the compiler counts none.
    """

    ici: float
    dcn: float
    host: float
    clock: float | None


# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}: "inter-chip interconnect bandwidth" a chip, one way (the pages of
# v5p, v6e and TPU7x give both ways together), and the data-centre network's (of v5e and v6e a pod's, by its 256 chips;
# of v4 its host's 200 Gb/s by 4 chips). Clock: peak FLOP/s over those of one cycle (multiply units of 128 x 128, of
# v6e and TPU7x 256 x 256, two FLOPs for each multiplication), for one core. Host: PCIe of 16 lanes, of the
# third and fourth generation, less its overhead. GPUs: NVIDIA's data sheets of H100 and H200 (NVLink, 900 GB/s both
# ways together; PCIe of the fifth generation, 128 GB/s both ways together, less its overhead) and of DGX H100 and H200
# (for each GPU one ConnectX-7 of 400 Gb/s InfiniBand).
LINKS: Mapping[str, Links] = {
    "v4": Links(300e9, 6.25e9, 16e9, 1.05e9),
    "v5e": Links(200e9, 3.125e9, 16e9, 1.5e9),
    "v5p": Links(600e9, 6.25e9, 16e9, 1.75e9),
    "v6e": Links(400e9, 12.5e9, 32e9, 1.75e9),
    "tpu7x": Links(600e9, 12.5e9, 32e9, 2.2e9),
    "h100": Links(450e9, 50e9, 55e9, None),
    "h200": Links(450e9, 50e9, 55e9, None),
}


# Model FLOPs utilisation that published runs of 7B to 32B dense models reached, nothing that is made again counted: v4
# and v5p, MaxText (22B to 52B); v5e, AXLearn's fuji-7B v2 on 1024 chips; v6e, MaxText's Llama-3.1-8B on 256; TPU7x,
# MaxText's Gemma 4B (1,002 TFLOP/s a chip); H100, LLM Foundry's MPT 7B and 13B of 4096 tokens on 8 GPUs
# (scripts/train/benchmarking/README.md: 40.4 and 41.6% with all of the attention counted, so 38 to 39% as causal). H200
# has the same die; nobody has published that it reaches more.
PUBLISHED_MFU: Mapping[str, float] = {
    "v4": 0.56,
    "v5e": 0.46,
    "v5p": 0.65,
    "v6e": 0.45,
    "tpu7x": 0.43,
    "h100": 0.38,
    "h200": 0.38,
}


@dataclasses.dataclass(frozen=True)
class Device:
    """What one JAX device has of a chip's peaks.

    Attributes:
        flops: dense bfloat16 FLOP/s.
        bandwidth: bytes/s of its memory.
        memory: bytes.
        taken: of these what JAX takes for arrays unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
        ici: bytes/s to devices of its slice or box.
        dcn: bytes/s to other slices or boxes.
        host: bytes/s to the memory of the host.
        clock: cycles/s of the compiler's estimates; None where it makes none.
    """

    flops: float
    bandwidth: float
    memory: float
    taken: float
    ici: float
    dcn: float
    host: float
    clock: float | None


def device(slices: Slices) -> Device:
    """The peaks of one device of these slices."""
    chip, links, share = CHIPS[slices.kind], LINKS[slices.kind], slices.devices // slices.chips
    return Device(
        chip.flops / share,
        chip.bandwidth / share,
        chip.memory / share,
        chip.memory / share * (gpus.TAKEN if slices.gpus else 1),
        links.ici / share,
        links.dcn / share,
        links.host / share,
        links.clock,
    )
