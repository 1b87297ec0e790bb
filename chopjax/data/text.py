"""Documents from files of text, JSON, Parquet or ArrayRecord or a hub dataset, one at a time, in a fixed order."""

import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
from array_record.python import array_record_module

from chopjax import paths
from chopjax.data.config import TextSource
from chopjax.data.find import find_files
from chopjax.data.json_text import json_lines, json_object, json_records
from chopjax.data.streams import open_bytes, reading
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
        with reading(path):
            yield from READERS[kind](path, source)


def _text_file(path: pathlib.Path, source: TextSource) -> Iterator[Record]:
    with open_bytes(path) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 (byte {error.start}); convert the file") from error
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise UserError(f"{path}, line {line}: holds a NUL character, so it is no plain text; leave it out")
    yield str(path), text


def _json_lines(path: pathlib.Path, source: TextSource) -> Iterator[Record]:
    with open_bytes(path) as file:
        for where, record in json_lines(path, file):
            yield where, _value(record, source, where)


def _json_file(path: pathlib.Path, source: TextSource) -> Iterator[Record]:
    with open_bytes(path) as file:
        for where, record in json_records(path, file):
            yield where, _value(record, source, where)


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
                    yield (
                        where,
                        _value(json_object(record, where), source, where) if as_json else _plain_text(record, where),
                    )
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
    "json": _json_file,
    "parquet": _parquet,
    "arrayrecord": _array_record,
}
