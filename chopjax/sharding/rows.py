"""Which rows of a batch each process brings."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from chopjax.errors import UserError
from chopjax.sharding.rules import RULES


@dataclasses.dataclass(frozen=True)
class Share:
    """One process's rows: block `index` of `count` equal ones of a batch.

    Attributes:
        index: which block.
        count: number of blocks. Processes whose devices work on the same rows bring the same block.
        leads: whether this is the first of the processes that bring the block.
        places: where the block's parts, in order, stand on the mesh, counted in rows of one device.
    """

    index: int
    count: int
    leads: bool
    places: tuple[int, ...]


@functools.lru_cache
def share_of(mesh: Mesh, process: int | None = None) -> Share:
    """The share of one process, by default of this one.

    Raises:
        UserError: some processes would need parts of the rows of several others.
    """
    process = jax.process_index() if process is None else process
    found: dict[int, set[int]] = {}
    for device, place in _places(mesh).items():
        found.setdefault(device.process_index, set()).add(place)
    return shared(found, process)


def shared(places: Mapping[int, set[int]], process: int) -> Share:
    """The share of a process.

    Args:
        places: process → the rows of one device that its devices work on.
        process: which one.

    Raises:
        UserError: as `share_of`.
    """
    blocks = sorted({tuple(sorted(mine)) for mine in places.values()})
    if sum(map(len, blocks)) != len(set().union(*places.values())) or len({len(block) for block in blocks}) > 1:
        raise UserError(
            "mesh: some hosts work on parts of the rows of several others; make mesh.context x mesh.tensor a divisor "
            "or a multiple of the devices of a host"
        )
    mine = tuple(sorted(places[process]))
    leads = process == min(other for other, rows in places.items() if tuple(sorted(rows)) == mine)
    return Share(blocks.index(mine), len(blocks), leads, mine)


def local_rows(share: Share, rows: Sequence[int] | np.ndarray, at: slice, batch: int) -> np.ndarray:
    """Of this process's rows those that stand at `at` on the mesh.

    Args:
        share: which rows the process has.
        rows: they, in order.
        at: rows of the whole batch.
        batch: number of those.
    """
    size = len(rows) // len(share.places)  # rows of one device
    start, stop, _ = at.indices(batch)
    parts = [share.places.index(place) for place in range(start // size, stop // size)]
    return np.concatenate([rows[part * size : (part + 1) * size] for part in parts])


def _places(mesh: Mesh) -> dict[jax.Device, int]:
    """For each device which of the equal parts of a batch's rows it works on."""
    axes = tuple(axis for axis in RULES["batch"] if axis in mesh.shape)
    parts = int(np.prod([mesh.shape[axis] for axis in axes], dtype=np.int64))
    indices = NamedSharding(mesh, PartitionSpec(axes)).devices_indices_map((parts,))
    return {device: index[0].start or 0 for device, index in indices.items()}
