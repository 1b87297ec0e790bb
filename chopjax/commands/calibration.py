"""The calibration rows that scores, candidates and fits are made on: rows of the shuffled mixture."""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Array, Int

from chopjax.commands.run import Run
from chopjax.data.batches import Batches, mixture_digest
from chopjax.data.reached import repeated
from chopjax.errors import UserError
from chopjax.score.file import HALVES
from chopjax.sharding.mesh import place_batch

Batch = dict[str, Int[Array, "batch length"]]


def rows_read(run: Run, rows: int = 0, start: int = 0) -> int:
    """Rows of one reading from `start` on: as many as asked for, by default `score.rows`, unless there are fewer.

    Raises:
        UserError: `score.skip` leaves none.
    """
    there, skip = sum(len(rows) for rows, _ in run.data.mixture()), run.settings.score.skip
    if skip >= there:
        raise UserError(f"score.skip is {skip}, but the text has only {there} rows; skip fewer, or give more text")
    return min(rows or run.settings.score.rows, there - skip - start)


def shortage(run: Run, rows: int = 0, start: int = 0) -> list[str]:
    """A line where fewer rows are read than `score.rows` says, and one where some are read again; `rows` as above."""
    chosen, mixture = run.settings.score, run.data.mixture()
    count, first = rows_read(run, rows, start), chosen.skip + start
    lines = []
    if count < (rows or chosen.rows) and not start:
        there = f"the text has only {count} rows{f' after score.skip = {chosen.skip}' * bool(chosen.skip)}"
        lines.append(f"score.rows: {there}; {count} are read instead of {rows or chosen.rows}")
    again = repeated(mixture, run.settings.seed, first, first + count, chosen.skip) if len(mixture) > 1 else []
    for (part, _), number in zip(mixture, again, strict=False):
        if number:
            name = part.folder.parent.name
            lines.append(
                f"score.rows: {number} of the {count} rows that are read were read before, since {name} has only "
                f"{len(part)} rows; give it more text, lower its weight, or lower score.rows"
            )
    return lines


def said(run: Run, rows: int = 0) -> str:
    """Which rows they are, as a score file names them; `rows` as in `rows_read`."""
    first = run.settings.score.skip
    return f"{mixture_digest(run.data.mixture(), run.settings.seed)}/{first}-{first + rows_read(run, rows)}"


def calibration(run: Run, rows: int = 0, start: int = 0) -> Iterator[Batch]:
    """Batches of `score.batch` rows on the mesh, sources mixed by weight; the last is filled up with padding.

    Args:
        run: says which rows, and how many in a batch.
        rows: how many in all; 0 for `score.rows`.
        start: rows to pass over first, besides `score.skip`.

    Yields:
        `tokens`, `segment_ids`, `positions`, int32 [batch, length], and `half` int32 [batch]: of which half of the
            rows (even, odd) each is. Of a mixture with chats, bool `targets` too.
    """
    batch, rows, first = run.settings.score.batch, rows_read(run, rows, start), run.settings.score.skip + start
    share = batch // run.share.count
    run.say_once(("calibration", rows, start), lambda: shortage(run, rows, start))
    found = Batches(
        run.data.mixture(),
        batch,
        run.settings.seed,
        start_row=first,
        process_index=run.share.index,
        process_count=run.share.count,
        threads=run.settings.data.threads,
    )
    try:
        for number in range(math.ceil(rows / batch)):
            run.boundary()
            index = number * batch + run.share.index * share + np.arange(share)
            one = dict(next(found))
            one["segment_ids"] = np.where(index[:, None] < rows, one["segment_ids"], 0).astype(np.int32)
            one["half"] = (index % HALVES).astype(np.int32)
            yield place_batch(run.mesh, one)
    finally:
        found.close()


def rows_of(batch: Batch) -> Batch:
    """`tokens`, `segment_ids` and `positions` of a batch, and `targets` if it has them."""
    return {name: batch[name] for name in ("tokens", "segment_ids", "positions", "targets") if name in batch}
