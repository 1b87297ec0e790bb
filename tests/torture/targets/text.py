"""Text files of every format. What is accepted must be what the format's own library reads."""

import bz2
import gzip
import json
import lzma
import os
import pathlib
from collections.abc import Callable, Mapping

from torture import mutate
from torture.sandbox import Reader
from torture.targets.target import Draw, Target, in_child

GOOD = [{"text": f'{number}: the heron eats fish, "frogs" and\nflies.'} for number in range(20)]
BOMB_BYTES = 1 << 30
Texts = list[str]


def _lines() -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in GOOD)


def _expected(records: list[object]) -> Texts:
    return [record["text"] for record in records if isinstance(record, dict) and record["text"]]


def _from_lines(data: bytes) -> Texts:
    return _expected([json.loads(line) for line in data.splitlines() if line.strip()])


def _zstd(data: bytes) -> bytes:
    import pyarrow

    return pyarrow.Codec("zstd").compress(data, asbytes=True)


def _unzstd(data: bytes) -> bytes:
    import pyarrow

    with pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd") as stream:
        return stream.read()


PACKED: Mapping[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "gz": (gzip.compress, gzip.decompress),
    "bz2": (bz2.compress, bz2.decompress),
    "xz": (lzma.compress, lzma.decompress),
    "zst": (_zstd, _unzstd),
}


def text_files(draw: Draw) -> Reader:
    kind, _, how = draw.kind.partition(", ")
    if kind in PACKED:
        return _packed(draw, kind, how)
    return {
        "jsonl": _json_lines,
        "json": _json_list,
        "txt": _plain,
        "csv": _csv,
        "parquet": _parquet,
        "arrayrecord": _array_record,
        "odd": _odd,
    }[kind](draw, how)


def _packed(draw: Draw, kind: str, how: str) -> Reader:
    pack, unpack = PACKED[kind]
    file = draw.folder / f"t.jsonl.{kind}"
    if how == "swells":
        file.write_bytes(_bomb(draw, kind, pack))
        return _reader(file, None)
    raw = mutate.changed_bytes(draw.rng, pack(_lines()))
    if how == "two members":
        raw = pack(_lines()) + pack(_lines())
    file.write_bytes(raw)
    return _reader(file, lambda: _from_lines(unpack(raw)))


def _bomb(draw: Draw, kind: str, pack: Callable[[bytes], bytes]) -> bytes:
    """A record of a gigabyte; made once."""
    kept = draw.bench.folder / f"bomb.{kind}"
    if not kept.exists():
        part = b"a" * (1 << 24)
        kept.write_bytes(pack(b'{"text": "') + pack(part) * (BOMB_BYTES >> 24) + pack(b'"}'))
    return kept.read_bytes()


def _json_lines(draw: Draw, how: str) -> Reader:
    lines = _lines().splitlines()
    at = draw.rng.randrange(len(lines))
    lines[at] = mutate.json_bytes(draw.rng, mutate.json_value(draw.rng, json.loads(lines[at])))
    file, raw = draw.folder / "t.jsonl", b"\n".join(lines)
    file.write_bytes(raw)
    return _reader(file, lambda: _from_lines(raw))


def _json_list(draw: Draw, how: str) -> Reader:
    """A file `.json` holds JSON lines or one list."""
    file = draw.folder / "t.json"
    value = GOOD if how == "a list" else mutate.json_value(draw.rng, GOOD)
    raw = json.dumps(value).encode("utf-8", "surrogatepass") if how == "a list" else mutate.json_bytes(draw.rng, value)
    file.write_bytes(_lines() if how == "lines" else raw)
    if how == "lines":
        return _reader(file, lambda: _from_lines(_lines()))
    return _reader(file, lambda: _expected(json.loads(raw)) if isinstance(json.loads(raw), list) else _from_lines(raw))


def _plain(draw: Draw, how: str) -> Reader:
    """A text file is one document or more; its text must not change."""
    file = draw.folder / "t.txt"
    raw = "".join(f"{record['text']}\n\n" for record in GOOD).encode()
    raw = mutate.changed_bytes(draw.rng, raw) if how == "changed" else raw
    file.write_bytes(raw)
    return _reader(file, lambda: ["".join(raw.decode("utf-8-sig").split())], joined=True)


def _csv(draw: Draw, how: str) -> Reader:
    """A table is read by its columns or refused; it is no text of one document."""
    file = draw.folder / "t.csv"
    raw = "text,number\n" + "".join(f'"{record["text"]}",1\n'.replace('"frogs"', '""frogs""') for record in GOOD)
    file.write_bytes(mutate.changed_bytes(draw.rng, raw.encode()) if how == "changed" else raw.encode())
    return _reader(file, (lambda: _expected(list(GOOD))) if how == "sound" else None)


def _parquet(draw: Draw, how: str) -> Reader:
    import pyarrow
    from pyarrow import parquet

    file = draw.folder / "t.parquet"
    columns = [["a", None, "b"], [1, 2, 3], [["a"], [], None], [b"\xff", b"a", b""], [{"a": 1}], []]
    column = draw.rng.choice(columns)
    in_child(lambda: parquet.write_table(pyarrow.table({"text": column}), file))
    if how == "changed":
        file.write_bytes(mutate.changed_bytes(draw.rng, file.read_bytes()))
    return _reader(file, lambda: [text for text in parquet.read_table(file)["text"].to_pylist() if text])


def _array_record(draw: Draw, how: str) -> Reader:
    file = draw.folder / "t.arrayrecord"
    in_child(lambda: _write_array_record(file))
    file.write_bytes(mutate.changed_bytes(draw.rng, file.read_bytes()))
    return _reader(file, lambda: _expected(list(GOOD)))


def _write_array_record(file: pathlib.Path) -> None:
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    for record in GOOD:
        writer.write(json.dumps(record).encode())
    writer.close()


ODD: Mapping[str, Callable[[pathlib.Path], object]] = {
    "a folder": lambda file: file.mkdir(),
    "a pipe": lambda file: os.mkfifo(file),
    "a link to itself": lambda file: file.symlink_to(file.name),
    "a link to nothing": lambda file: file.symlink_to("gone"),
    "null": lambda file: file.write_text('{"text": null}\n{"text": ""}\n'),
    "a number of 10,000 digits": lambda file: file.write_text('{"text": ' + "9" * 10_000 + "}\n"),
    "a line of 10 MB": lambda file: file.write_text('{"text": "' + "a" * 10**7 + '"}\n'),
    "NaN": lambda file: file.write_text('{"text": NaN}\n'),
    "half a character": lambda file: file.write_text('{"text": "\\ud800"}\n'),
    "nothing": lambda file: file.write_text(""),
    "zeros": lambda file: file.write_bytes(bytes(4096)),
}


def _odd(draw: Draw, how: str) -> Reader:
    file = draw.folder / "t.jsonl"
    ODD[how](file)
    return _reader(file, None)


def _reader(file: pathlib.Path, stock: Callable[[], Texts] | None, joined: bool = False) -> Reader:
    """Compares with what the format's own library reads; `joined`: the text of all documents, white space aside."""

    def read() -> str:
        from chopjax.data.config import TextSource
        from chopjax.data.text import documents

        if stock is None:
            for _ in documents(TextSource(path=str(file))):
                pass
            return ""
        found = list(documents(TextSource(path=str(file))))
        try:
            expected = stock()
        except Exception as error:
            return f"accepted, but the format's own library refuses it ({str(error)[:100]})"
        found = ["".join("".join(found).split())] if joined else found
        return "" if found == expected else f"{len(found)} documents other than the {len(expected)} stored"

    return read


KINDS = (
    *("jsonl, changed", "json, a list", "json, lines", "json, changed", "txt, sound", "txt, changed"),
    *("csv, sound", "csv, changed", "parquet, sound", "parquet, changed", "arrayrecord, changed"),
    *(f"{kind}, {how}" for kind in PACKED for how in ("changed", "two members", "swells")),
    *(f"odd, {kind}" for kind in ODD),
)
TARGETS = (Target("text_files", text_files, KINDS),)
