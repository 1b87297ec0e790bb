"""Which rows of each source a stretch of the mixture reads."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, SupportsIndex, cast

import numpy as np
from jaxtyping import Bool

from chopjax.data.batches import Mixture, mixture_dataset
from chopjax.data.rows import Rows, RowsInfo


def reached(mixture: Mixture, seed: int, first: int, last: int) -> list[Bool[np.ndarray, "rows"]]:
    """For each part of the mixture, True at the rows that lie at global rows `first` to `last` - 1.

    No file is read. It takes some ten microseconds for each global row.

    Raises:
        UserError: see `chopjax.data.batches.mixture_dataset`.
    """
    found = [np.zeros(len(rows), bool) for rows, _ in mixture]
    for part, index in _order(mixture, seed, first, last):
        found[part][index] = True
    return found


def repeated(mixture: Mixture, seed: int, first: int, last: int, start: int = 0) -> list[int]:
    """For each part how many of the global rows `first` to `last` - 1 hold a row that one from `start` on held already.

    Parts are read at the pace of their weights, so a small one may repeat before the others were read once. No file is
    read.

    Raises:
        UserError: see `chopjax.data.batches.mixture_dataset`.
    """
    counts = [0 for _ in mixture]
    seen: set[tuple[int, int]] = set()
    for row, place in enumerate(_order(mixture, seed, start, last), start):
        counts[place[0]] += row >= first and place in seen
        seen.add(place)
    return counts


def _order(mixture: Mixture, seed: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Part and row of each global row."""
    parts = [(cast(Rows, _Places(part, rows.folder, rows.info)), w) for part, (rows, w) in enumerate(mixture)]
    order: Any = mixture_dataset(parts, seed)
    return (order[row] for row in range(first, last))


@dataclasses.dataclass(frozen=True)
class _Places:
    """Stands for a part's rows in a mixture: element i says which part and which row it is."""

    part: int
    folder: pathlib.Path
    info: RowsInfo

    def __len__(self) -> int:
        return self.info.rows

    def __getitem__(self, index: SupportsIndex) -> tuple[int, int]:
        return self.part, index.__index__()
