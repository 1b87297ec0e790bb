"""Text and rows in a store."""

import gzip
import json
import pathlib

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from array_record.python import array_record_module
from gcs import Store

from chopjax.data.config import DataConfig, TextSource
from chopjax.data.find import find_files, source_digest
from chopjax.data.prepare import prepare, prepare_or_open
from chopjax.data.rows import FILE, Rows
from chopjax.data.text import documents
from chopjax.errors import UserError

TEXTS = ["first\nwith two lines", "zweiter, größer", "third 🐟"]


def as_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def text(cloud: Store, bucket: str, tmp_path: pathlib.Path) -> str:
    """One text in every format, in the store and in `tmp_path`."""
    parquet.write_table(arrow.table({"text": TEXTS}), tmp_path / "a.parquet")
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "a.arrayrecord"), "group_size:1")
    for one in TEXTS:
        writer.write(one.encode())
    writer.close()
    (tmp_path / "a.jsonl").write_bytes(as_lines(TEXTS))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(as_lines(TEXTS)))
    for file in tmp_path.iterdir():
        cloud.put(f"{bucket}/{file.suffix[1:]}/deep/{file.name}", file.read_bytes())
    return f"gs://{bucket}"


@pytest.mark.parametrize("suffix", ["jsonl", "gz", "parquet", "arrayrecord"])
def test_every_format_reads_the_same(text: str, tmp_path: pathlib.Path, suffix: str) -> None:
    (file,) = (file for file in tmp_path.iterdir() if file.suffix == f".{suffix}")
    for path in (f"{text}/{suffix}", f"{text}/{suffix}/deep/{file.name}", f"{text}/{suffix}/**/a*"):
        source = TextSource(path=path)
        assert list(documents(source)) == TEXTS
    here, there = TextSource(path=str(file)), TextSource(path=f"{text}/{suffix}/deep/{file.name}")
    assert source_digest(here) == source_digest(there)


def test_names_are_relative_and_hidden_ones_left_out(text: str, cloud: Store, bucket: str) -> None:
    cloud.put(f"{bucket}/jsonl/.hidden/a.jsonl", b"")
    cloud.put(f"{bucket}/jsonl/b.jsonl", as_lines(["fourth"]))
    assert [name for name, _ in find_files(TextSource(path=f"{text}/jsonl"))[1]] == ["b.jsonl", "deep/a.jsonl"]
    assert [name for name, _ in find_files(TextSource(path=f"{text}/js*/*.jsonl"))[1]] == ["jsonl/b.jsonl"]
    with pytest.raises(UserError, match=r"no jsonl files at gs://.*/nothing"):
        find_files(TextSource(path=f"{text}/nothing", format="jsonl"))


def test_rows_are_written_once_and_read_where_they_lie(
    cloud: Store, bucket: str, tokenizer_folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    cloud.put(f"{bucket}/text.jsonl", as_lines([f"{number} water runs " * 5 for number in range(40)]))
    said: list[str] = []
    source = TextSource(path=f"gs://{bucket}/text.jsonl")
    config = DataConfig(sources=(source,), length=16, heldout_fraction=0.2)
    there = prepare(config, tokenizer_folder, f"gs://{bucket}/rows", say=said.append)
    here = prepare(config, tokenizer_folder, tmp_path / "rows")
    assert prepare(config, tokenizer_folder, f"gs://{bucket}/rows", say=said.append) == there
    assert said == ["text.jsonl: 1 file read as jsonl", "text.jsonl: rows are there already"]
    opened = prepare_or_open(DataConfig(rows=f"gs://{bucket}/rows"), tokenizer_folder, "unused")
    (one, _), (other, _) = opened.mixture()[0], here.mixture()[0]
    assert len(one) == len(other) > 10
    before = len(cloud.asked)
    for number in (7, 0, len(one) - 1):
        for name, value in one[number].items():
            np.testing.assert_array_equal(value, other[number][name])
    # One request a row or so, and none for all of them.
    assert 0 < len(cloud.asked) - before < 12 and all("arrayrecord" in path for _, path in cloud.asked[before:])
    one.close()


def test_rows_without_their_last_file_are_none(cloud: Store, bucket: str, tokenizer_folder: pathlib.Path) -> None:
    cloud.put(f"{bucket}/text.jsonl", as_lines(["water runs"] * 9))
    config = DataConfig(sources=(TextSource(path=f"gs://{bucket}/text.jsonl"),), length=16, heldout_fraction=0.0)
    said: list[str] = []
    prepare(config, tokenizer_folder, f"gs://{bucket}/rows")
    folder = f"{bucket}/rows/text.jsonl/train"
    numbers = {name: cloud.objects[f"{folder}/{name}"][1] for name in cloud.names(folder)}
    assert max(numbers, key=lambda name: numbers[name]) == FILE
    del cloud.objects[f"{folder}/{FILE}"]
    with pytest.raises(UserError, match="not a folder of rows"):
        Rows(f"gs://{folder}")
    prepare(config, tokenizer_folder, f"gs://{bucket}/rows", say=said.append)
    assert "its rows are written again" in said[0]
    cloud.put(f"{folder}/rows-00000.arrayrecord", b"short")
    with pytest.raises(UserError, match="has 5 bytes instead of"):
        Rows(f"gs://{folder}")
