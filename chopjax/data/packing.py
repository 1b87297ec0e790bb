"""Documents to rows of one length, none of their tokens lost: concatenate, then split."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int32

Tokens = Int32[np.ndarray, "tokens"]
Row = tuple[Int32[np.ndarray, "length"], Int32[np.ndarray, "length"]]


class Packer:
    """Lays documents end to end and cuts the result into rows.

    Within a row, documents are numbered 1, 2, ... by `segment_ids`; a document that crosses the end of a row goes on
    in the next one as a segment of its own. 0 marks the padding of the last row.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._start_row()

    def _start_row(self) -> None:
        self._tokens = np.zeros(self.length, np.int32)
        self._segment_ids = np.zeros(self.length, np.int32)
        self._used = 0
        self._segment = 0

    def add(self, tokens: Tokens) -> Iterator[Row]:
        """Takes one document and gives the rows that it completes, as (tokens, segment_ids)."""
        while tokens.size:
            part = tokens[: self.length - self._used]
            tokens = tokens[part.size :]
            place = slice(self._used, self._used + part.size)
            self._segment += 1
            self._tokens[place] = part
            self._segment_ids[place] = self._segment
            self._used += part.size
            if self._used == self.length:
                yield self._tokens, self._segment_ids
                self._start_row()

    def finish(self) -> Iterator[Row]:
        """Gives the last row, padded, if any token is left."""
        if self._used:
            yield self._tokens, self._segment_ids
            self._start_row()


def positions_of(segment_ids: Int32[np.ndarray, "*rows length"]) -> Int32[np.ndarray, "*rows length"]:
    """Positions that restart at 0 with each segment; 0 in padding.

    Args:
        segment_ids: equal along each segment, different in neighbouring ones; 0 is padding.
    """
    index = np.arange(segment_ids.shape[-1], dtype=np.int32)
    starts = np.zeros(segment_ids.shape, np.int32)
    starts[..., 1:] = np.where(segment_ids[..., 1:] != segment_ids[..., :-1], index[1:], 0)
    positions = index - np.maximum.accumulate(starts, axis=-1)
    return np.where(segment_ids == 0, 0, positions).astype(np.int32)
