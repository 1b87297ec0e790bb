"""A teacher's targets on disk: for each source a folder with `cache.json` and ArrayRecord shards.

Record i is of row i of the source's rows, and empty where that row's targets are not kept. So what is in a cache does
not depend on the order in which training reads rows, nor on the mesh or the processes that wrote it.

path/SOURCE/train/cache.json            what it is, and whether it is whole
path/SOURCE/train/targets-00000.arrayrecord
path/SOURCE/heldout/                    likewise, of the held-out rows that evaluation reads
"""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import SupportsIndex

import grain
from array_record.python import array_record_module

from chopjax import files, folders, records, temporary
from chopjax.data.rows import Batch, Rows
from chopjax.data.target_records import DIGEST_BYTES, Targets, decode_draws, decode_top, row_digest
from chopjax.errors import UserError

KIND, NEWEST = "chopjax teacher cache", 1
FILE = "cache.json"
AGAIN = "run python -m chopjax.cache_teacher with this config and another cache.path, or remove that folder first"


@dataclasses.dataclass(frozen=True)
class Selection:
    """Whose targets are kept: all rows, or those at places `first` to `last` - 1 of an order of rows.

    Attributes:
        order: digest of the order; empty for all rows.
        first: the first place.
        last: the place after the last one.
    """

    order: str = ""
    first: records.Count = 0
    last: records.Count = 0

    def __str__(self) -> str:
        return f"{self.first} to {self.last} of order {self.order}" if self.order else "all"

    def covers(self, other: "Selection") -> bool:
        """Whether all rows of the other are kept."""
        within = self.order == other.order and self.first <= other.first and other.last <= self.last
        return not self.order or within


@dataclasses.dataclass(frozen=True)
class CacheInfo:
    """What `cache.json` says, and what a run asks for.

    Attributes:
        kind: `top_k` or `samples`.
        count: entries of each position: tokens kept, or draws.
        temperature: by which the teacher's logits were divided.
        teacher: fingerprint of the teacher's files.
        tokenizer: digest of the tokenizer.
        vocab: number of tokens.
        rows: digest of the rows.
        row_count: how many rows there are, kept or not.
        dtype: that the teacher computed in.
        seed: of the draws; 0 where nothing is drawn.
        shard_rows: rows in one file, the last one excepted.
        selection: whose targets are kept.
    """

    kind: str
    count: records.Positive
    temperature: records.NotNegative
    teacher: str
    tokenizer: str
    vocab: records.Positive
    rows: str
    row_count: records.Count
    dtype: str
    seed: int
    shard_rows: records.Positive
    selection: Selection

    @property
    def shards(self) -> int:
        """Number of files."""
        return -(-self.row_count // self.shard_rows)

    def rows_of(self, shard: int) -> range:
        """The rows of one file."""
        return range(shard * self.shard_rows, min(self.row_count, (shard + 1) * self.shard_rows))

    def mismatch(self, wanted: "CacheInfo") -> str:
        """What keeps a run from reading this cache, in words; empty if nothing does."""
        for field, said in _READ.items():
            if getattr(self, field) != getattr(wanted, field):
                return f"has {said} {getattr(self, field)!s:.60}, but this run has {getattr(wanted, field)}"
        if self.kind == "samples" and self.count != wanted.count:
            return f"has cache.samples {self.count}, but this run has {wanted.count}"
        if self.count < wanted.count:
            return f"has cache.k {self.count}, but this run reads {wanted.count}"
        if not self.selection.covers(wanted.selection):
            return "was made for other rows of this text than this run reads (cache.rows, seed, train.batch and steps)"
        return ""

    def change(self, wanted: "CacheInfo") -> str:
        """What keeps a cut-off command from going on with this cache, in words; empty if nothing does."""
        for field in dataclasses.fields(self):
            ours, theirs = getattr(wanted, field.name), getattr(self, field.name)
            if ours != theirs:
                return f"was begun with {_SAID.get(field.name, field.name)} {theirs!s:.60}, but this run has {ours}"
        return ""


# What must be the same to read a cache, as people know it.
_READ = {
    "kind": "cache.kind",
    "teacher": "a teacher of fingerprint",
    "tokenizer": "a tokenizer of digest",
    "vocab": "a vocabulary of",
    "rows": "rows of digest",
    "row_count": "a number of rows of",
    "temperature": "loss.temperature",
}
_SAID = _READ | {
    "count": "cache.k or cache.samples",
    "dtype": "train.compute_dtype",
    "shard_rows": "cache.shard_rows",
    "selection": "rows (cache.rows, seed, train.batch and steps)",
}


def begin(folder: pathlib.Path, info: CacheInfo) -> bool:
    """Makes the folder ready to be written, or to be written on; says whether it is whole already.

    What killed processes left half-written is removed.

    Raises:
        UserError: it holds targets of a cache that was begun otherwise.
    """
    temporary.clear_inside(folder, rf"{re.escape(FILE)}|targets-\d+\.arrayrecord")
    found, _ = _read_info(folder)
    if is_whole(folder, info):
        return True
    change = "" if found is None else found.change(info)
    if found is not None and change and any(shard_path(folder, shard).exists() for shard in range(found.shards)):
        raise UserError(f"{folder} {change}; {AGAIN}")
    if found is not None and not change:
        return False
    if found is None and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something that is no teacher's cache; name another folder in cache.path")
    _write_info(folder, info, None)
    return False


def is_whole(folder: pathlib.Path, info: CacheInfo) -> bool:
    """Whether all that a run asks for is there."""
    found, sizes = _read_info(folder)
    return found is not None and sizes is not None and not found.mismatch(info) and not missing(folder, found)


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes from writing to it while the block goes on.

    Raises:
        UserError: it cannot be made, or another process writes to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cache.path: {folder} cannot be made ({error.strerror}); name another") from error
    with folders.held(folder):
        yield


def missing(folder: pathlib.Path, info: CacheInfo) -> list[int]:
    """The shards that are not there, or no longer of the size that they had."""
    _, sizes = _read_info(folder)
    known: Sequence[int | None] = sizes or [None] * info.shards
    return [shard for shard, size in enumerate(known) if not _is_there(shard_path(folder, shard), size)]


def _is_there(path: pathlib.Path, size: int | None) -> bool:
    return path.exists() and size in (None, path.stat().st_size)


def finish(folder: pathlib.Path, info: CacheInfo) -> None:
    """Says in `cache.json` that all shards are there, and their sizes."""
    _write_info(folder, info, [shard_path(folder, shard).stat().st_size for shard in range(info.shards)])


@contextlib.contextmanager
def written_shard(folder: pathlib.Path, shard: int) -> Iterator[Callable[[bytes], None]]:
    """Yields what appends a record to a shard, which appears when the block ends well."""
    with temporary.replacing(shard_path(folder, shard)) as place:
        writer = array_record_module.ArrayRecordWriter(str(place), "group_size:1,uncompressed")
        try:
            yield writer.write
        finally:
            if writer.is_open():
                writer.close()


def shard_path(folder: pathlib.Path, shard: int) -> pathlib.Path:
    """Where a shard lies."""
    return folder / f"targets-{shard:05d}.arrayrecord"


class CachedRows(Rows):
    """Rows with a teacher's targets: each has `target_ids`, `target_probs`, `target_tail` and `target_offset` too.

    They are the fields of `chopjax.distill.targets.Sparse` without the batch axis: int32 and float32 [length, k], and
    float32 [length] twice. Anything that takes `Rows` takes these.

    Args:
        folder: of the rows.
        cache: folder of the cache of these rows.
        wanted: what the run asks for; of the most probable tokens also fewer than the cache has.

    Raises:
        UserError: there is no whole cache, or it is of another teacher, tokenizer, temperature or other rows.
    """

    def __init__(self, folder: str | pathlib.Path, cache: pathlib.Path, wanted: CacheInfo) -> None:
        super().__init__(folder)
        self.cache = cache
        self._wanted = wanted
        self._cached, self._kept = _open(cache, wanted)

    def __getitem__(self, index: SupportsIndex) -> Batch:
        """Row `index` with its targets.

        Raises:
            IndexError: `index` is outside [0, len).
            UserError: the row or its record is damaged, or the record is of other tokens, or empty.
        """
        row, number = super().__getitem__(index), index.__index__()
        try:
            record = self._cached[number]
        except RuntimeError as error:
            raise UserError(f"{self.cache}: record {number} is damaged ({error}); {AGAIN}") from error
        if not record:
            raise UserError(f"{self.cache}: no targets were kept for row {number}; {AGAIN}")
        if record[:DIGEST_BYTES] != row_digest(row["tokens"], row["segment_ids"]):
            raise UserError(
                f"{self.cache}: record {number} is of other tokens than row {number} of {self.folder}; {AGAIN}"
            )
        try:
            targets = self._decode(record)
        except UserError as error:
            raise UserError(f"{self.cache}: record {number} is damaged: {error}; {AGAIN}") from error
        return row | {f"target_{name}": value for name, value in targets.items()}

    def close(self) -> None:
        """Closes the files."""
        super().close()
        self._cached.__exit__(None, None, None)

    def _decode(self, record: bytes) -> Targets:
        length, wanted, vocab = self.info.length, self._wanted.count, self._kept.vocab
        if self._kept.kind == "samples":
            return decode_draws(record, length, wanted, vocab)
        return decode_top(record, length, wanted, self._kept.count, vocab)


def _open(folder: pathlib.Path, wanted: CacheInfo) -> tuple[grain.sources.ArrayRecordDataSource, CacheInfo]:
    """The records of a cache that fits a run, and what the cache says of itself."""
    found, sizes = _read_info(folder)
    if found is None:
        raise UserError(f"{folder} has no {FILE}; run python -m chopjax.cache_teacher with this config first")
    if sizes is None:
        raise UserError(f"{folder} was cut off; run python -m chopjax.cache_teacher with the same config to its end")
    if reason := found.mismatch(wanted):
        raise UserError(f"{folder} {reason}; {AGAIN}")
    paths = [shard_path(folder, shard) for shard in range(found.shards)]
    for path, size in zip(paths, sizes, strict=True):
        if not _is_there(path, size):
            raise UserError(f"{path} is missing or cut off; run python -m chopjax.cache_teacher with this config again")
    try:
        source = grain.sources.ArrayRecordDataSource([str(path) for path in paths])
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{folder}: damaged ({error}); {AGAIN}") from error
    if len(source) != found.row_count:
        raise UserError(f"{folder}: {len(source)} records for {found.row_count} rows; {AGAIN}")
    return source, found


def _write_info(folder: pathlib.Path, info: CacheInfo, sizes: list[int] | None) -> None:
    files.write_json(folder / FILE, {"format": f"{KIND} {NEWEST}", **dataclasses.asdict(info), "shard_bytes": sizes})


def _read_info(folder: pathlib.Path) -> tuple[CacheInfo | None, list[int] | None]:
    """What the folder holds, None if no cache; and the sizes of its shards, None if it is not whole."""
    where = str(folder / FILE)
    raw = records.read_object(folder / FILE, AGAIN)
    if raw is None:
        return None, None
    records.check_format(raw, NEWEST, where, AGAIN, KIND)
    written = records.shaped({"sizes": raw.pop("shard_bytes", None)}, _Sizes, where, AGAIN).sizes
    info = records.shaped(raw, CacheInfo, where, AGAIN)
    if info.kind == "top_k" and info.count > info.vocab:
        raise UserError(f"{where}: count is {info.count}, but there are {info.vocab} tokens; {AGAIN}")
    if written is not None and len(written) != info.shards:
        raise UserError(f"{where}: shard_bytes has {len(written)} sizes for {info.shards} shards; {AGAIN}")
    return info, None if written is None else list(written)


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Bytes of each shard; None until all are written."""

    sizes: tuple[records.Positive, ...] | None
