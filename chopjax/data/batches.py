"""Batches of a weighted mixture of rows, all addressed by one global index.

Row g of a run is a function of the mixture, the seed and g alone. Process p of n reads its share of each batch, so the
rows and their order are the same for any number of processes, and a run resumes from a single number.
"""

import hashlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from chopjax import files
from chopjax.data.rows import Batch, Rows, stack_rows
from chopjax.errors import UserError

Mixture = Sequence[tuple[Rows, float]]  # rows and their weight


def mixture_dataset(mixture: Mixture, seed: int) -> grain.MapDataset:
    """The endless mixture: element g is row g of the run.

    Each part is shuffled anew every time it has been read through. Parts alternate in a fixed pattern, as evenly as
    their weights allow (Grain rounds weights to a hundredth of the smallest), so every stretch of rows has the right
    shares.

    Raises:
        UserError: nothing to mix, a part without rows, rows of several lengths or tokenizers.
    """
    if not mixture:
        raise UserError("data.sources: nothing to read; name at least one source that is not held out")
    first = mixture[0][0]
    for rows, weight in mixture:
        if not len(rows):
            raise UserError(f"{rows.folder} has no rows; lower data.heldout_fraction, or give the source more text")
        if weight <= 0:
            raise UserError(f"{rows.folder}: weight is {weight}; it must be positive")
        for field in ("length", "tokenizer"):
            one, other = getattr(first.info, field), getattr(rows.info, field)
            if one != other:
                raise UserError(f"{rows.folder}: {field} is {other}, but {first.folder} has {one}; prepare them alike")
    parts = [
        grain.MapDataset.source(rows).shuffle(_part_seed(seed, index)).repeat()
        for index, (rows, _) in enumerate(mixture)
    ]
    return grain.MapDataset.mix(parts, [weight for _, weight in mixture])


def has_targets(parts: Iterable[Rows]) -> bool:
    """Whether batches of these rows say which tokens are to be predicted: those do in which there are chats."""
    return any(rows.info.targets is not None for rows in parts)


def _part_seed(seed: int, index: int) -> int:
    """A seed for each part. Grain adds the epoch to it, so seeds of neighbouring numbers would share their orders."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:4], "little")


def mixture_digest(mixture: Mixture, seed: int) -> str:
    """Equal where `mixture_dataset` gives equal rows: of the parts' content, their relative weights, and the seed."""
    total = sum(weight for _, weight in mixture)
    parts = [[rows.info.digest, round(weight / total, 9)] for rows, weight in mixture]
    return files.digest({"parts": parts, "seed": seed})


class _Shares:
    """Element k is one process's share of the k-th batch from row `start` on."""

    def __init__(
        self,
        dataset: grain.MapDataset,
        targets: bool,
        start: int,
        batch: int,
        process_index: int,
        process_count: int,
    ) -> None:
        self._dataset = dataset
        self._targets = targets
        self._batch = batch
        self._share = batch // process_count
        self._first = start + process_index * self._share
        self._length = (sys.maxsize - start) // batch

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        first = self._first + index * self._batch
        return stack_rows([self._dataset[row] for row in range(first, first + self._share)], self._targets)


class Batches(Iterator[Batch]):
    """Iterator of `{"tokens", "segment_ids", "positions"}`, each int32 [batch / process_count, length], without end.

    Where any source of the mixture is of chats, there is bool `targets` too: True where a token is to be predicted, and
    all True in rows of plain text.

    The batch at global row r holds rows r ... r + batch - 1 of the mixture, and this process's contiguous share of
    them. Threads read ahead. `seek`, `get_state` and `set_state` go by the next global row, so that any position is
    reached at once, with any process count.

    Args:
        mixture: rows and weights.
        batch: rows of one step, over all processes.
        seed: of the order of rows.
        start_row: global row to begin with; step s of an uninterrupted run begins at row s * batch.
        process_index: which share this process reads.
        process_count: number of shares.
        threads: threads that read ahead; 0 reads in the calling thread.
        prefetch: batches that are read ahead.

    Raises:
        UserError: see `mixture_dataset`; or `process_count` does not divide `batch`.
    """

    def __init__(
        self,
        mixture: Mixture,
        batch: int,
        seed: int,
        *,
        start_row: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        threads: int = 4,
        prefetch: int = 8,
    ) -> None:
        if batch < 1 or batch % process_count:
            raise UserError(f"train.batch is {batch}; it must be a multiple of the {process_count} processes")
        self.batch = batch
        self._dataset = mixture_dataset(mixture, seed)
        self._targets = has_targets(rows for rows, _ in mixture)
        self.digest = mixture_digest(mixture, seed)
        self._process = (process_index, process_count)
        self._threads = min(threads, prefetch)
        self._options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=prefetch)
        self._iterator: grain.DatasetIterator | None = None
        self.seek(start_row)

    @property
    def row(self) -> int:
        """Global row with which the next batch begins."""
        return self._row

    def seek(self, row: int) -> None:
        """Goes on at a global row."""
        if row < 0:
            raise ValueError(f"row {row} is negative")
        self.close()
        self._row = row

    def __next__(self) -> Batch:
        if self._iterator is None:
            shares = _Shares(self._dataset, self._targets, self._row, self.batch, *self._process)
            self._iterator = iter(grain.MapDataset.source(shares).to_iter_dataset(self._options))
        batch = next(self._iterator)
        self._row += self.batch
        return batch

    def close(self) -> None:
        """Stops reading ahead. The next batch starts it again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def get_state(self) -> dict[str, Any]:
        """The next global row and the mixture's digest, as JSON values."""
        return {"row": self._row, "digest": self.digest}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where `get_state` was called, also with another batch or process count.

        Raises:
            UserError: the state is of another mixture or seed.
        """
        if state["digest"] != self.digest:
            raise UserError(
                f"data.sources, their weights, the tokenizer or seed differ from those of the interrupted run (digest "
                f"{state['digest']}, now {self.digest}); restore them, or use a new workdir"
            )
        self.seek(int(state["row"]))


def spread(sizes: Sequence[int], limit: int) -> list[Int[np.ndarray, "chosen"]]:
    """For each part the rows that a limited reading takes: at even distances over all parts, one after the other.

    The first so many would be of a few documents of the first part alone.

    Args:
        sizes: number of rows of each part.
        limit: rows of all parts to take; 0, or more than there are, for all.
    """
    ends = np.cumsum([0, *sizes])
    total = int(ends[-1])
    count = min(limit or total, total)
    places = np.linspace(0, total - 1, count).astype(np.int64)  # the first and the last among them
    return [places[(places >= start) & (places < end)] - start for start, end in itertools.pairwise(ends)]


def one_pass(
    parts: Sequence[Rows], batch: int, *, limit: int = 0, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Reads rows once and in order, as evaluation does; the last batch is filled up with padding (segment 0).

    Args:
        parts: rows of equal length, one after the other.
        batch: rows of one batch, over all processes.
        limit: read so many rows at most, those of `spread`; 0 for all.
        process_index: which contiguous share of each batch this process reads.
        process_count: number of shares; every process gets equally many batches.

    Yields:
        `{"tokens", "segment_ids", "positions"}`, each int32 [batch / process_count, length]; bool `targets` too where
            any of the rows are of chats, as in `Batches`.

    Raises:
        UserError: `process_count` does not divide `batch`.
    """
    if batch < 1 or batch % process_count:
        raise UserError(f"the batch of {batch} rows must be a multiple of the {process_count} processes")
    chosen = spread([len(rows) for rows in parts], limit)
    where = [(rows, int(index)) for rows, indices in zip(parts, chosen, strict=True) for index in indices]
    share = batch // process_count
    for first in range(0, len(where), batch):
        start = first + process_index * share
        rows = [part[index] for part, index in where[start : start + share]]
        blank = rows[0] if rows else where[0][0][where[0][1]]
        padding = {key: np.zeros_like(value) for key, value in blank.items()}
        yield stack_rows(rows + [padding] * (share - len(rows)), has_targets(parts))
