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
from chopjax.data.config import BESIDE, TextSource
from chopjax.data.find import find_files
from chopjax.data.json_text import json_lines, json_object, json_records
from chopjax.data.plain_text import plain_text
from chopjax.data.streams import open_bytes, reading
from chopjax.errors import UserError

BATCH = 256  # records read at a time from Parquet and ArrayRecord

# Where it stands, and the value of the field. Of a chat source all fields that are read, by name.
Record = tuple[str, Any]


def documents(source: TextSource) -> Iterator[str]:
    """The documents of a source that hold any text, in an order that depends on nothing but the source.

    Raises:
        UserError: a file, line or field that cannot be read, by name.
    """
    texts = (checked_text(value, source.text_field, where) for where, value in records(source))
    return itertools.islice(filter(None, texts), source.max_documents or None)


def records(source: TextSource) -> Iterator[Record]:
    """The field `source.text_field` of each record, or the fields of a chat, with the record's place for messages.

    Raises:
        UserError: a file, line or record that cannot be read, by name, or one without a field.
    """
    if source.hub:
        yield from _hub_records(source)
        return
    kind, named = find_files(source)
    if source.chats and kind == "text":
        raise UserError(
            f"data.sources: {source.path}: plain text files hold no {source.setting}; give JSON lines or Parquet"
        )
    for _, path in named:
        with reading(path):
            yield from READERS[kind](path, source)


def _text_file(path: pathlib.Path, source: TextSource) -> Iterator[Record]:
    with open_bytes(path) as file:
        yield from plain_text(path, file)


def _json_lines(path: pathlib.Path, source: TextSource) -> Iterator[Record]:
    with open_bytes(path) as file:
        for where, record in json_lines(path, file):
            yield where, _value(record, source, where)


def _json_file(path: pathlib.Path, source: TextSource) -> Iterator[Record]:
    with open_bytes(path) as file:
        for where, record in json_records(path, file):
            yield where, _value(record, source, where)


def _value(record: Mapping[str, Any], source: TextSource, where: str) -> Any:
    for field in source.fields:
        if field not in record:
            there = ", ".join(map(str, record))
            chat = any(isinstance(value, list) and value and isinstance(value[0], dict) for value in record.values())
            setting = (
                f"{source.setting}, or messages for conversations" if chat and not source.chats else source.setting
            )
            # Beside data there are often files about it, such as dataset_infos.json.
            alone = source.hub or where.startswith(f"{source.path}, ")
            advice = setting if alone else f"{setting}, or leave the file out with a glob"
            raise UserError(f"{where}: no field {field!r}; there are {there}; set {advice}")
    return record if source.chats else record[source.fields[0]]


def _without_nulls(value: Any) -> Any:
    """Objects without their null fields: tables hold a null where another row's object has a field."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _chat_row(record: Mapping[str, Any], source: TextSource) -> dict[str, Any]:
    """A row of a table as a chat's record; a null stays where the whole field is null."""
    return {name: _without_nulls(value) for name, value in record.items() if value is not None or name in source.fields}


def checked_text(value: Any, field: str, where: str, setting: str = "text_field") -> str:
    """`value` as text that UTF-8 can hold; a null is an empty document.

    Raises:
        UserError: it is of another kind, or holds half a character.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        if setting == "text_field" and isinstance(value, list):
            setting = "messages in place of text_field"
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
            for field in source.fields:
                if field not in names:
                    there = ", ".join(names)
                    raise UserError(f"{path}: no column {field!r}; there are {there}; set {source.setting}")
            columns = [*source.fields, *(name for name in BESIDE if source.chats and name in names)]
            row = 0
            for batch in file.iter_batches(BATCH, columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    value = _chat_row(record, source) if source.chats else record[source.fields[0]]
                    yield f"{path}, row {row}", value
    except arrow.ArrowException as error:
        raise UserError(f"{path}: not a whole Parquet file ({_first_line(error)})") from error


def _array_record(path: pathlib.Path, source: TextSource) -> Iterator[Record]:
    """Records are JSON objects if the source is of chats or the first has the field, else plain text."""
    try:
        reader = array_record_module.ArrayRecordReader(paths.for_array_record(path))
        try:
            count = reader.num_records()
            as_json: bool | None = True if source.chats else None
            for start in range(0, count, BATCH):
                for offset, record in enumerate(reader.read(start, min(start + BATCH, count))):
                    as_json = _is_json_record(record, source.text_field) if as_json is None else as_json
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
        value = _value(record, source, where)
        yield where, _chat_row(value, source) if source.chats else value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


READERS: dict[str, Callable[[pathlib.Path, TextSource], Iterator[Record]]] = {
    "text": _text_file,
    "jsonl": _json_lines,
    "json": _json_file,
    "parquet": _parquet,
    "arrayrecord": _array_record,
}
