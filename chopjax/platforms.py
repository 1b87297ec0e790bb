"""Which platforms JAX should look for, and how much of the host they may take; settled before jax is imported."""

import ctypes
import importlib.util
import os
import pathlib

PCI = pathlib.Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"
PINNED = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"
# glibc's numbers for what `mallopt` sets.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def skip_absent_tpus(pci: pathlib.Path = PCI) -> None:
    """Tells JAX to stay on the CPU where libtpu is installed, for compiling ahead of time, and nothing else is there.

    JAX would try libtpu first, which prints a page of complaints on a machine without TPUs. What a person chose by
    JAX_PLATFORMS stands, as does anything that a plugin such as CUDA's might bring.

    Args:
        pci: where the kernel lists the machine's devices.
    """
    if "JAX_PLATFORMS" not in os.environ and importlib.util.find_spec("libtpu") is not None and _only_cpu(pci):
        os.environ["JAX_PLATFORMS"] = "cpu"


def keep_memory(pci: pathlib.Path = PCI) -> None:
    """Where JAX computes on a CPU, memory that was given back stays with the process, for the next step to take.

    XLA takes and gives back gigabytes in every step. glibc hands each such piece to the system, which clears new pages
    for the next: up to a quarter of the CPU seconds of a training step. What the process takes at its peak is the same.

    Does nothing with another C library, or where a person set the allocator by GLIBC_TUNABLES.

    Args:
        pci: where the kernel lists the machine's devices.
    """
    if not _only_cpu(pci) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Only the one arena that grows by brk is without limit; any other would map what is large in spite of all.
        for setting, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
            mallopt(setting, value)


def allow_pinned_memory() -> None:
    """Lets the client of GPUs pin as much of the host's memory as there is, unless a person set a limit.

    It would stop at 64 GB: a checkpoint of 5.7 billion parameters, which passes through such memory, would fail.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    os.environ.setdefault(PINNED, str(max(64, there)))


def _only_cpu(pci: pathlib.Path) -> bool:
    """Whether JAX will find nothing but the CPU, by what a person chose or by what is there."""
    if "JAX_PLATFORMS" in os.environ:
        return os.environ["JAX_PLATFORMS"] == "cpu"
    return importlib.util.find_spec("jax_plugins") is None and not _made_by_google(pci)


def _made_by_google(pci: pathlib.Path) -> bool:
    """Whether any device may be a TPU; some network cards of cloud machines are Google's too."""
    return any(vendor.read_text().strip() == GOOGLE for vendor in pci.glob("*/vendor"))
