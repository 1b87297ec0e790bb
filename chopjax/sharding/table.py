"""The printed table of where every parameter lies. Plain data, no jax."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from chopjax.models.config import ModelConfig
from chopjax.models.parameters import declare
from chopjax.sharding.rules import Entry, assign


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter on the mesh.

    Attributes:
        leaf: its path.
        shape: its whole shape.
        names: the names of its axes.
        spec: the mesh axes of each of its axes.
        fallbacks: what was done instead of the rule, in words; empty if nothing was.
        bytes_per_chip: bytes of it that one device holds.
    """

    leaf: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    spec: tuple[Entry, ...]
    fallbacks: tuple[str, ...]
    bytes_per_chip: int


def table(
    config: ModelConfig, mesh_shape: Mapping[str, int], fallbacks: Sequence[str] = (), bytes_per_value: int = 4
) -> list[Row]:
    """A row for each parameter of `config`, held in `bytes_per_value` bytes a value.

    Raises:
        UserError: a size does not divide and no fallback is permitted.
    """
    rows = []
    for path, leaf in declare(config).items():
        shape = leaf.shape(config.sizes)
        spec, taken = assign(leaf.axes, shape, mesh_shape, fallbacks, path)
        parts = math.prod(mesh_shape[axis] for entry in spec for axis in entry)
        rows.append(Row(path, shape, leaf.axes, spec, taken, leaf.size(config.sizes) // parts * bytes_per_value))
    return rows


def format_table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, with the sum a device holds at the end."""
    head = ("parameter", "shape", "axes", "mesh axes", "MiB a chip", "fallback")
    lines = [head]
    for row in rows:
        shape = "x".join(map(str, row.shape))
        spec = " ".join("+".join(entry) or "-" for entry in row.spec)
        size = f"{row.bytes_per_chip / 2**20:.2f}"
        lines.append((row.leaf, shape, " ".join(row.names), spec, size, "; ".join(row.fallbacks)))
    lines.append(("all", "", "", "", f"{sum(row.bytes_per_chip for row in rows) / 2**20:.2f}", ""))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
