"""Devices of TPU slices and boxes of GPUs that are not there, for the compiler to compile for."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from chopjax.aot import gpus
from chopjax.errors import UserError

KNOWN = ("v4", "v5e", "v5p", "v6e", "tpu7x")
FLAT = ("v5e", "v6e")  # a torus of two axes, others of three
BY_CORE = ("v4", "v5p", "tpu7x")  # accelerator types count cores, of which a chip has two
CHIPS_OF_HOST = 4

# libtpu would ask a metadata server what machine this is, and let only one process of a machine in. Any valid
# accelerator type will do: the topology's name decides what is compiled for.
ENVIRONMENT = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

_NAME = re.compile(rf"(?:(\d+)\*)?({'|'.join((*KNOWN, *gpus.KINDS))})(?:-(\d+)|:(\d+(?:x\d+)*))")


@dataclasses.dataclass(frozen=True)
class Slices:
    """TPUs or GPUs by kind and number.

    Attributes:
        kind: one of `KNOWN` or of `gpus.KINDS`.
        grid: chips along each axis of a slice's torus; GPUs of a box.
        slices: slices, joined by the data-centre network; boxes, joined by InfiniBand.
    """

    kind: str
    grid: tuple[int, ...]
    slices: int = 1

    @property
    def gpus(self) -> bool:
        """Whether these are boxes of GPUs."""
        return self.kind in gpus.KINDS

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.slices * math.prod(self.grid)

    @property
    def devices(self) -> int:
        """Devices that JAX shows: a TPU7x chip is two."""
        return self.chips * (2 if self.kind == "tpu7x" else 1)

    def __str__(self) -> str:
        several = f"{self.slices}*" if self.slices > 1 else ""
        return f"{several}{self.kind}:{'x'.join(map(str, self.grid))}"


def parse(name: str) -> Slices:
    """Slices by name: `v5e:4x4` by grid, `v5e-64` as Cloud TPU names accelerators, `2*v5e-64` for two of them.

    Cloud TPU counts chips of v5e and v6e, and cores, two a chip, of v4, v5p and TPU7x: `v5p-32` has 16 chips. Boxes of
    GPUs are `h100:8`, and `2*h100:8` for two of them.

    Raises:
        UserError: it is no such name, or no slice has that many chips.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise UserError(
            f"topology is {name!r}; give a kind of TPU ({', '.join(KNOWN)}) with its size or grid, such as v5e-64, "
            f"v5e:8x8 or v5p-32, and 2*v5e-64 for two slices; or of GPU ({', '.join(gpus.KINDS)}) with the number in "
            "a box, such as h100:8, and 2*h100:8 for two boxes"
        )
    slices, kind, size, grid = found.groups()
    of_box = kind in gpus.KINDS
    shape = tuple(map(int, grid.split("x"))) if grid else None if of_box else _grid(kind, int(size))
    if of_box and (shape is None or len(shape) > 1 or shape[0] > gpus.LARGEST_BOX):
        largest = f"{kind}:{gpus.LARGEST_BOX}"
        raise UserError(f"topology {name}: a box has at most {gpus.LARGEST_BOX} GPUs; give {largest}, or 2*{largest}")
    if shape is None:
        raise UserError(f"topology {name}: no slice of {kind} has that size; give its grid, such as {kind}:2x2")
    if min(shape) < 1 or int(slices or 1) < 1:
        raise UserError(f"topology {name}: every size is at least 1")
    return Slices(kind, shape, int(slices or 1))


def _grid(kind: str, size: int) -> tuple[int, ...] | None:
    """The most cubic grid of powers of two, longest axis last, as Cloud TPU lays slices out."""
    chips = size // 2 if kind in BY_CORE else size
    if chips < 1 or chips & (chips - 1) or (kind in BY_CORE and size % 2):
        return None
    axes, power = (2 if kind in FLAT else 3), chips.bit_length() - 1
    if kind not in FLAT and chips == CHIPS_OF_HOST:
        return (2, 2, 1)
    return tuple(1 << (power + place) // axes for place in range(axes))


def devices(name: str | Slices) -> list[jax.Device]:
    """The devices of TPU slices or boxes of GPUs, for instance "v5e:4x4"; programs compile for them but do not run.

    What the process itself computes with is left as it is: its own devices should be chosen, or JAX_PLATFORMS=cpu be
    set, before JAX looks for TPUs.

    Raises:
        UserError: libtpu or the CUDA plugin, which hold the compilers, is not installed; or there is no such slice.
    """
    wanted = parse(name) if isinstance(name, str) else name
    if wanted.gpus:
        return gpus.devices(wanted.kind, wanted.chips // wanted.slices, wanted.slices)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"topology {name}: compiling for TPUs needs libtpu; pip install libtpu, in the release that "
            "`pip install 'chopjax[tpu]'` picks for the installed jax"
        )
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {"topology_name": f"{wanted.kind}:{'x'.join(map(str, wanted.grid))}"}
    if wanted.kind == "v4":  # one chip of v4 is one device to JAX, as it is when run
        options["chip_config_name"] = "megacore"
    if wanted.slices > 1:
        options["num_slices"] = wanted.slices
    if math.prod(wanted.grid) < CHIPS_OF_HOST:
        options["chips_per_host_bounds"] = (*wanted.grid, *[1] * (3 - len(wanted.grid)))
    try:
        return list(topologies.get_topology_desc(platform="tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"topology {name}: libtpu knows no such slice ({reason}); give one such as v5e:4x4") from error
