"""Which platforms JAX should look for, and how much of the host they may take; settled before jax is imported."""

import importlib.util
import os
import pathlib

PCI = pathlib.Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"
PINNED = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"


def skip_absent_tpus(pci: pathlib.Path = PCI) -> None:
    """Tells JAX to stay on the CPU where libtpu is installed, for compiling ahead of time, and nothing else is there.

    JAX would try libtpu first, which prints a page of complaints on a machine without TPUs. What a person chose by
    JAX_PLATFORMS stands, as does anything that a plugin such as CUDA's might bring.

    Args:
        pci: where the kernel lists the machine's devices.
    """
    if "JAX_PLATFORMS" in os.environ or importlib.util.find_spec("libtpu") is None:
        return
    if importlib.util.find_spec("jax_plugins") is None and not _made_by_google(pci):
        os.environ["JAX_PLATFORMS"] = "cpu"


def allow_pinned_memory() -> None:
    """Lets the client of GPUs pin as much of the host's memory as there is, unless a person set a limit.

    It would stop at 64 GB: a checkpoint of 5.7 billion parameters, which passes through such memory, would fail.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    os.environ.setdefault(PINNED, str(max(64, there)))


def _made_by_google(pci: pathlib.Path) -> bool:
    """Whether any device may be a TPU; some network cards of cloud machines are Google's too."""
    return any(vendor.read_text().strip() == GOOGLE for vendor in pci.glob("*/vendor"))
