"""Packed rows on disk: a folder with `rows.json` and ArrayRecord shards, written once and read at random.

A record is one row: `length` tokens, then `length` segment ids, all little-endian int32; of chats then `length` bytes,
1 where a token is to be predicted. Positions are derived.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, SupportsIndex

import grain
import numpy as np
from array_record.python import array_record_module
from jaxtyping import Bool, Int32

from chopjax import files, paths, records
from chopjax.data.packing import positions_of
from chopjax.errors import UserError
from chopjax.folders import sent

KIND, NEWEST = "chopjax rows", 1
FILE = "rows.json"
AGAIN = "delete the folder and prepare the rows again"
SHARD_TOKENS = 1 << 27  # tokens in one shard: 1 GiB before compression

Batch = dict[str, Int32[np.ndarray, "..."] | Bool[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file: its name, rows and size in bytes."""

    file: records.Name
    rows: records.Positive
    bytes: records.Positive


@dataclasses.dataclass(frozen=True)
class RowsInfo:
    """What `rows.json` says.

    Attributes:
        length: tokens a row, padding included.
        rows: number of rows.
        tokens: tokens in all rows, padding not counted.
        documents: documents that they come from.
        max_token: the highest id that occurs; -1 without any.
        split: `train` or `heldout`.
        tokenizer: digest of the tokenizer's vocabulary.
        recipe: all that decides the rows' content, by name.
        shards: the files, in order.
        targets: of chats, how many tokens are to be predicted; None for plain text, where all are.
    """

    length: records.Positive
    rows: records.Count
    tokens: records.Count
    documents: records.Count
    max_token: Annotated[int, records.Within(-1)]
    split: str
    tokenizer: str
    recipe: Mapping[str, Any]
    shards: tuple[Shard, ...]
    targets: records.Count | None = None

    @property
    def digest(self) -> str:
        """Equal for rows of equal content."""
        return files.digest({"recipe": self.recipe, "split": self.split, "length": self.length})


class RowsWriter:
    """Writes rows into an existing empty folder; `finish` completes it with `rows.json`, without which it is none.

    Args:
        folder: where.
        length: tokens a row.
        shard_tokens: tokens in one file.
        chats: whether rows come with targets.
    """

    def __init__(
        self, folder: pathlib.Path, length: int, shard_tokens: int = SHARD_TOKENS, chats: bool = False
    ) -> None:
        self._folder = folder
        self._length = length
        self._shard_rows = max(1, shard_tokens // length)
        self._writer: Any = None
        self._written = 0  # rows in the open shard
        self._shards: list[Shard] = []
        self._rows = self._tokens = 0
        self._max_token = -1
        self._chats = chats
        self._targets = 0

    def write(
        self,
        tokens: Int32[np.ndarray, "length"],
        segment_ids: Int32[np.ndarray, "length"],
        targets: Bool[np.ndarray, "length"] | None = None,
    ) -> None:
        """Appends one row; of chats with its targets."""
        if (targets is not None) != self._chats:
            raise ValueError("rows of chats have targets, and others none")
        if self._writer is None:
            # A group of one record is what makes reading at random cheap.
            self._writer = array_record_module.ArrayRecordWriter(str(self._shard_path()), "group_size:1")
        record = np.stack([tokens, segment_ids]).astype("<i4").tobytes()
        if targets is not None:
            record += targets.astype(np.uint8).tobytes()
            self._targets += int(np.count_nonzero(targets))
        self._writer.write(record)
        self._written += 1
        self._rows += 1
        self._tokens += int(np.count_nonzero(segment_ids))
        self._max_token = max(self._max_token, int(tokens.max()))
        if self._written == self._shard_rows:
            self._close_shard()

    def finish(self, *, documents: int, split: str, tokenizer: str, recipe: Mapping[str, Any]) -> RowsInfo:
        """Closes the last shard and writes `rows.json`."""
        self._close_shard()
        info = RowsInfo(
            length=self._length,
            rows=self._rows,
            tokens=self._tokens,
            documents=documents,
            max_token=self._max_token,
            split=split,
            tokenizer=tokenizer,
            recipe=dict(recipe),
            shards=tuple(self._shards),
            targets=self._targets if self._chats else None,
        )
        said = {name: value for name, value in dataclasses.asdict(info).items() if value is not None}
        files.write_json(self._folder / FILE, {"format": f"{KIND} {NEWEST}", **said})
        return info

    def close(self) -> None:
        """Gives up: closes the open file and writes no `rows.json`."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _shard_path(self) -> pathlib.Path:
        return self._folder / f"rows-{len(self._shards):05d}.arrayrecord"

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        self.close()
        path = self._shard_path()
        self._shards.append(Shard(path.name, self._written, path.stat().st_size))
        sent(path)
        self._written = 0


def read_info(folder: str | pathlib.Path) -> RowsInfo:
    """Reads `rows.json` and checks that every shard has the size that it was written with.

    Raises:
        UserError: the folder is not there, not of rows, or a shard is missing or cut off.
    """
    folder = paths.make(folder)
    where = str(folder / FILE)
    raw = records.read_object(folder / FILE, AGAIN)
    if raw is None:
        raise UserError(f"{folder} has no {FILE}: not a folder of rows; run chopjax.prepare_data")
    records.check_format(raw, NEWEST, where, AGAIN, KIND)
    info = records.shaped(raw, RowsInfo, where, AGAIN)
    if info.rows != sum(shard.rows for shard in info.shards):
        raise UserError(
            f"{where}: rows is {info.rows}, but its shards have {sum(s.rows for s in info.shards)}; {AGAIN}"
        )
    sizes = paths.inside(folder, nested=False)
    for shard in info.shards:
        path, size = folder / shard.file, sizes.get(shard.file)
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes instead of {shard.bytes}"
            raise UserError(f"{path} {found}; delete {folder} and prepare the rows again")
    return info


class Rows:
    """Random access to a folder of rows; safe to read from several threads.

    Attributes:
        folder: where they lie.
        info: what `rows.json` says.
    """

    def __init__(self, folder: str | pathlib.Path) -> None:
        self.folder = paths.make(folder)
        self.info = read_info(folder)
        self._source = self._open() if self.info.rows else None

    def _open(self) -> grain.sources.ArrayRecordDataSource:
        shards = [paths.for_array_record(self.folder / shard.file) for shard in self.info.shards]
        try:
            source = grain.sources.ArrayRecordDataSource(shards)
        except (RuntimeError, ValueError) as error:
            if paths.is_remote(self.folder):  # as well a name or a permission
                raise UserError(f"{self.folder}: cannot be read ({error}); see to the store, or to the rows") from error
            raise UserError(f"{self.folder}: damaged rows ({error}); delete the folder and prepare it again") from error
        if len(source) != self.info.rows:
            raise UserError(f"{self.folder}: {len(source)} rows, but {FILE} says {self.info.rows}; prepare it again")
        return source

    def __len__(self) -> int:
        return self.info.rows

    def __getitem__(self, index: SupportsIndex) -> Batch:
        """Row `index` as `{"tokens", "segment_ids", "positions"}`, each int32 [length]; segment 0 is padding.

        A row of chats has bool `targets` too, True where a token is to be predicted.

        Raises:
            IndexError: `index` is outside [0, len).
            UserError: the record is damaged.
        """
        number = index.__index__()
        if self._source is None or not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        try:
            record = self._source[number]
        except RuntimeError as error:
            raise UserError(f"{self.folder}: row {number} is damaged ({error}); prepare the rows again") from error
        length = self.info.length
        wanted = (8 if self.info.targets is None else 9) * length
        if len(record) != wanted:
            raise UserError(f"{self.folder}: row {number} has {len(record)} bytes instead of {wanted}")
        tokens, segment_ids = np.frombuffer(record, "<i4", 2 * length).astype(np.int32).reshape(2, length)
        if tokens.min() < 0 or tokens.max() > self.info.max_token or segment_ids.min() < 0:
            raise UserError(f"{self.folder}: row {number} holds tokens that {FILE} does not know of; prepare it again")
        row: Batch = {"tokens": tokens, "segment_ids": segment_ids, "positions": positions_of(segment_ids)}
        if self.info.targets is not None:
            row["targets"] = np.frombuffer(record, np.uint8, offset=8 * length) != 0
        return row

    def close(self) -> None:
        """Closes the files."""
        if self._source is not None:
            self._source.__exit__(None, None, None)


def stack_rows(rows: Sequence[Batch], targets: bool = False) -> Batch:
    """Rows as a batch: each entry int32 [batch, length].

    Args:
        rows: one or more rows.
        targets: whether the batch has bool `targets`; rows of plain text have them all True.
    """
    if targets:
        rows = [{"targets": np.ones(row["tokens"].shape, np.bool_), **row} for row in rows]
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
