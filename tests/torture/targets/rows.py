"""Packed rows with their manifest, and a teacher's targets. What is accepted must be what was written."""

import dataclasses
import os
import pathlib
import shutil
import struct
import zlib
from typing import Any

import numpy as np
from torture import mutate
from torture.sandbox import Reader
from torture.targets.target import Draw, Target, in_child, json_bytes, read_json

PART = "text.jsonl"
SPLIT = f"{PART}/train"
ROWS = (
    *("changed records", "one bit of the records", "manifest.json", "rows.json", "rows outside", "a shard outside"),
    *("another length", "the held-out rows", "another count"),
)
CACHES = ("changed records", "one bit of the records", "cache.json", "another k", "ids beyond", "a record that swells")
BOMB_BYTES = 2**30


def rows_files(draw: Draw) -> Reader:
    rows = draw.copy("rows")
    record = next((rows / SPLIT).glob("*.arrayrecord"))
    _damage_rows(draw, rows, record)

    def read() -> str:
        from chopjax.data.manifest import open_prepared
        from chopjax.data.rows import Rows

        sound = Rows(draw.bench.finished / "rows" / SPLIT)
        manifest = open_prepared(rows)
        manifest.describe()
        manifest.heldout()
        found = [part[index] for part, _ in manifest.mixture() for index in range(len(part))]
        if len(found) != len(sound):
            return f"{len(found)} rows in place of {len(sound)} were accepted"
        differing = sum(row["tokens"].tobytes() != sound[index]["tokens"].tobytes() for index, row in enumerate(found))
        if draw.kind.endswith("outside"):
            return "rows outside of the folder were read"
        return f"{differing} rows other than those written were accepted" if differing else ""

    return read


def _damage_rows(draw: Draw, rows: pathlib.Path, record: pathlib.Path) -> None:
    rng, facts, manifest = draw.rng, rows / SPLIT / "rows.json", rows / "manifest.json"
    match draw.kind:
        case "changed records":
            record.write_bytes(mutate.changed_bytes(rng, record.read_bytes()))
        case "one bit of the records":
            record.write_bytes(mutate.one_bit(rng, record.read_bytes()))
        case "manifest.json" | "rows.json":
            file = manifest if draw.kind == "manifest.json" else facts
            file.write_bytes(mutate.json_bytes(rng, mutate.json_value(rng, read_json(file))))
        case "rows outside":
            outside = draw.folder / "elsewhere"
            shutil.copytree(rows / PART, outside)
            raw = read_json(manifest)
            raw["parts"][0]["name"] = rng.choice([str(outside), os.path.relpath(outside, rows)])
            manifest.write_bytes(json_bytes(raw))
        case "a shard outside":
            raw = read_json(facts)
            raw["shards"][0]["file"] = f"../heldout/{raw['shards'][0]['file']}"
            facts.write_bytes(json_bytes(raw))
        case "another length":
            lengths = [48, 12, 10**12, 0, -24, "24", 24.0, None]
            facts.write_bytes(json_bytes(read_json(facts) | {"length": rng.choice(lengths)}))
        case "another count":
            counts = [1, 0, -1, 10**12, 1.5, "3", None, True]
            facts.write_bytes(json_bytes(read_json(facts) | {"rows": rng.choice(counts)}))
        case "the held-out rows":
            shutil.copyfile(next((rows / PART / "heldout").glob("*.arrayrecord")), record)
            raw = read_json(facts)
            raw["shards"][0]["bytes"] = record.stat().st_size
            facts.write_bytes(json_bytes(raw))


def teacher_cache(draw: Draw) -> Reader:
    cache = draw.copy(f"cache/{SPLIT}")
    facts = cache / "cache.json"
    raw = read_json(facts)
    _damage_cache(draw, cache, raw)

    def read() -> str:
        from chopjax.data.rows import Rows
        from chopjax.data.teacher_cache import CachedRows, CacheInfo, Selection
        from chopjax.errors import UserError

        sound = read_json(draw.bench.finished / "cache" / SPLIT / "cache.json")
        names = [field.name for field in dataclasses.fields(CacheInfo)]
        values = {name: sound[name] for name in names if name in sound}
        info = CacheInfo(**values | {"selection": Selection(**values["selection"])})
        rows = draw.bench.finished / "rows" / SPLIT
        theirs, ours = CachedRows(rows, draw.bench.finished / "cache" / SPLIT, info), CachedRows(rows, cache, info)
        differing = 0
        for index in range(len(Rows(rows))):
            try:
                row = theirs[index]
            except UserError:  # a row whose targets are not kept
                continue
            read_row = ours[index]
            if int(read_row["target_ids"].max()) >= info.vocab:
                return f"row {index}: ids beyond the vocabulary were accepted"
            differing += any(read_row[name].tobytes() != row[name].tobytes() for name in row)
        return f"targets of {differing} rows other than those written were accepted" if differing else ""

    return read


def _damage_cache(draw: Draw, cache: pathlib.Path, raw: dict[str, Any]) -> None:
    rng, facts, record = draw.rng, cache / "cache.json", next(cache.glob("*.arrayrecord"))
    match draw.kind:
        case "changed records":
            record.write_bytes(mutate.changed_bytes(rng, record.read_bytes()))
        case "one bit of the records":
            record.write_bytes(mutate.one_bit(rng, record.read_bytes()))
        case "cache.json":
            facts.write_bytes(mutate.json_bytes(rng, mutate.json_value(rng, raw)))
        case "another k":
            facts.write_bytes(json_bytes(raw | {"count": rng.choice([10**9, 8, 2**40, "16"])}))
        case _:
            token = rng.choice([10**6, 2**31 - 1])
            in_child(lambda: _rewrite(record, draw.kind, token))
            facts.write_bytes(json_bytes(raw | {"shard_bytes": [record.stat().st_size]}))


def _rewrite(file: pathlib.Path, kind: str, token: int) -> None:
    """Writes the shard again with one hostile record; all its sums are right."""
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(str(file))
    records = reader.read(0, reader.num_records())
    reader.close()
    at = next(index for index, record in enumerate(records) if record)
    records[at] = records[at][:8] + (_bomb() if kind == "a record that swells" else _targets(token))
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()


def _targets(token: int) -> bytes:
    """A row's targets as they are stored, every id the same."""
    ids = np.full((24, 16), token, "<u4").view(np.uint8).reshape(-1, 4).T
    planes = [bytes([1] * 24), *(plane.tobytes() for plane in ids)]
    planes += [bytes(24 * 16)] * 2 + [bytes(24)] * 2
    return b"".join(_deflated(plane) for plane in planes)


def _bomb() -> bytes:
    return _deflated(bytes(BOMB_BYTES))


def _deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = compressor.compress(data) + compressor.flush()
    return struct.pack("<I", len(packed)) + packed


TARGETS = (Target("rows_files", rows_files, ROWS), Target("teacher_cache", teacher_cache, CACHES))
