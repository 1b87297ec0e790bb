"""Which platforms JAX should look for; settled before jax is imported."""

import importlib.util
import os
import pathlib

PCI = pathlib.Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"


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


def _made_by_google(pci: pathlib.Path) -> bool:
    """Whether any device may be a TPU; some network cards of cloud machines are Google's too."""
    return any(vendor.read_text().strip() == GOOGLE for vendor in pci.glob("*/vendor"))
