"""Documents to rows of one length, none of their tokens lost: concatenate, then split."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int32

Tokens = Int32[np.ndarray, "tokens"]
Targets = Bool[np.ndarray, "tokens"]
Row = tuple[np.ndarray, ...]  # tokens, segment ids, and for chats the targets; each [length]


class Packer:
    """Lays documents end to end and cuts the result into rows; or, for chats, cuts only those longer than a row.

    Within a row, documents are numbered 1, 2, ... by `segment_ids`; a document that crosses the end of a row goes on
    in the next one as a segment of its own. 0 marks the padding of the last row. A chat that does not fit into what
    is left of a row begins the next one, since the rest of an answer means little without its question; so any row
    of chats may end in padding.

    Args:
        length: tokens a row.
        chats: whether documents come with targets.
    """

    def __init__(self, length: int, chats: bool = False) -> None:
        self.length = length
        self._chats = chats
        self._start_row()

    def _start_row(self) -> None:
        self._tokens = np.zeros(self.length, np.int32)
        self._segment_ids = np.zeros(self.length, np.int32)
        self._targets = np.zeros(self.length, np.bool_) if self._chats else None
        self._used = 0
        self._segment = 0

    def add(self, tokens: Tokens, targets: Targets | None = None) -> Iterator[Row]:
        """Takes one document and gives the rows that it completes.

        Args:
            tokens: its token ids.
            targets: of a chat, which of them are to be predicted.
        """
        if self._chats and tokens.size > self.length - self._used:
            yield from self.finish()
        while tokens.size:
            part = tokens[: self.length - self._used]
            tokens = tokens[part.size :]
            place = slice(self._used, self._used + part.size)
            self._segment += 1
            self._tokens[place] = part
            self._segment_ids[place] = self._segment
            if self._targets is not None and targets is not None:
                self._targets[place], targets = targets[: part.size], targets[part.size :]
            self._used += part.size
            if self._used == self.length:
                yield from self.finish()

    def finish(self) -> Iterator[Row]:
        """Gives the row begun, padded, if any token is in it."""
        if self._used:
            row = self._tokens, self._segment_ids
            yield row if self._targets is None else (*row, self._targets)
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
