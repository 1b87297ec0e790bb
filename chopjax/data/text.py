"""Documents from text files, JSON lines, Parquet, ArrayRecord or a hub dataset, one at a time and in a fixed order."""

import gzip
import itertools
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import pyarrow as arrow
import pyarrow.parquet as parquet
from array_record.python import array_record_module

from chopjax import paths
from chopjax.data.config import TextSource
from chopjax.data.find import find_files
from chopjax.errors import UserError

BATCH = 256  # records read at a time from Parquet and ArrayRecord

Record = tuple[str, Any]  # where it stands, and the value of the field


def documents(source: TextSource) -> Iterator[str]:
    """The documents of a source that hold any text, in an order that depends on nothing but the source.

    Raises:
        UserError: a file, line or field that cannot be read, by name.
    """
    texts = (checked_text(value, source.text_field, where) for where, value in records(source))
    return itertools.islice(filter(None, texts), source.max_documents or None)


def records(source: TextSource) -> Iterator[Record]:
    """What each record's `source.field` holds, with the record's place for messages to the user.

    Raises:
        UserError: a file, line or record that cannot be read, by name, or one without the field.
    """
    if source.hub:
        yield from _hub_records(source)
        return
    kind, named = find_files(source)
    if source.messages and kind == "text":
        raise UserError(f"data.sources: {source.path}: plain text files hold no messages; give JSON lines or Parquet")
    for _, path in named:
        try:
            yield from READERS[kind](path, source)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error}); mend or remove the file") from error
        except (EOFError, zlib.error) as error:
            raise UserError(f"{path}: the compressed file is damaged or ends too early; copy it again") from error


def _open(path: pathlib.Path) -> IO[bytes]:
    if path.suffix != ".gz":
        return path.open("rb")  # type: ignore[return-value]
    return gzip.open(path.open("rb") if paths.is_remote(path) else path, "rb")  # type: ignore[return-value]


def _text_file(path: pathlib.Path, source: TextSource) -> Iterator[Record]:
    with _open(path) as file:
        data = file.read()
    try:
        yield str(path), data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 (byte {error.start}); convert the file") from error


def _json_lines(path: pathlib.Path, source: TextSource) -> Iterator[Record]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line := line.strip():
                where = f"{path}, line {number}"
                yield where, _json_value(line, source, where)


def _json_value(data: bytes, source: TextSource, where: str) -> Any:
    try:
        record = json.loads(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8; convert the file") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested without end
        raise UserError(f"{where}: not JSON that can be read ({error})") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON object is wanted, not {type(record).__name__}")
    return _value(record, source, where)


def _value(record: Mapping[str, Any], source: TextSource, where: str) -> Any:
    if source.field not in record:
        there = ", ".join(map(str, record))
        chat = any(isinstance(value, list) and value and isinstance(value[0], dict) for value in record.values())
        setting = f"{source.setting}, or messages for conversations" if chat and not source.messages else source.setting
        raise UserError(f"{where}: no field {source.field!r}; there are {there}; set {setting}")
    return record[source.field]


def checked_text(value: Any, field: str, where: str) -> str:
    """`value` as text that UTF-8 can hold; a null is an empty document.

    Raises:
        UserError: it is of another kind, or holds half a character.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        setting = "messages in place of text_field" if isinstance(value, list) else "text_field"
        raise UserError(f"{where}: field {field!r} is {type(value).__name__}, not text; set {setting}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{where}: field {field!r} has a lone surrogate at character {error.start}") from error
    return value


def _parquet(path: pathlib.Path, source: TextSource) -> Iterator[Record]:
    try:
        with parquet.ParquetFile(path.open("rb") if paths.is_remote(path) else path) as file:
            names = file.schema_arrow.names
            if source.field not in names:
                there = ", ".join(names)
                raise UserError(f"{path}: no column {source.field!r}; there are {there}; set {source.setting}")
            row = 0
            for batch in file.iter_batches(BATCH, columns=[source.field]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield f"{path}, row {row}", value
    except arrow.ArrowException as error:
        raise UserError(f"{path}: not a whole Parquet file ({_first_line(error)})") from error


def _array_record(path: pathlib.Path, source: TextSource) -> Iterator[Record]:
    """Records are JSON objects if they are to hold messages or the first has the field, else plain text."""
    try:
        reader = array_record_module.ArrayRecordReader(paths.for_array_record(path))
        try:
            count = reader.num_records()
            as_json: bool | None = True if source.messages else None
            for start in range(0, count, BATCH):
                for offset, record in enumerate(reader.read(start, min(start + BATCH, count))):
                    as_json = _is_json_record(record, source.field) if as_json is None else as_json
                    where = f"{path}, record {start + offset + 1}"
                    yield where, _json_value(record, source, where) if as_json else _plain_text(record, where)
        finally:
            reader.close()
    except (RuntimeError, IndexError, ValueError) as error:
        raise UserError(f"{path}: not a whole ArrayRecord file ({_first_line(error)})") from error


def _is_json_record(record: bytes, field: str) -> bool:
    try:
        value = json.loads(record)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and field in value


def _plain_text(record: bytes, where: str) -> str:
    try:
        return record.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: neither UTF-8 text nor a JSON object (byte {error.start})") from error


def _hub_records(source: TextSource) -> Iterator[Record]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"data.sources: hub {source.hub!r} needs a package: pip install datasets") from error
    try:
        found = datasets.load_dataset(
            source.hub, source.subset or None, split=source.split, revision=source.revision or None, streaming=True
        )
    except (OSError, ValueError) as error:
        raise UserError(f"data.sources: hub {source.hub!r} cannot be opened ({_first_line(error)})") from error
    for number, record in enumerate(found, 1):
        where = f"{source.hub}, record {number}"
        yield where, _value(record, source, where)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


READERS: dict[str, Callable[[pathlib.Path, TextSource], Iterator[Record]]] = {
    "text": _text_file,
    "jsonl": _json_lines,
    "parquet": _parquet,
    "arrayrecord": _array_record,
}
