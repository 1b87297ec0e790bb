import gzip
import json
import pathlib
import sys
import types

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from array_record.python import array_record_module

from chopjax.data.config import TextSource
from chopjax.data.text import documents
from chopjax.errors import UserError

TEXTS = ["first\nwith two lines", "zweiter, größer", "third 🐟"]


def read(path: object, **fields: object) -> list[str]:
    return list(documents(TextSource(path=str(path), **fields)))


def write_lines(path: pathlib.Path, *records: object) -> pathlib.Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_records(path: pathlib.Path, *records: bytes, options: str = "group_size:1") -> pathlib.Path:
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


def test_text_one_document_a_file(tmp_path):
    for name, text in zip("bac", TEXTS, strict=True):
        (tmp_path / f"{name}.txt").write_bytes(text.encode())
    (tmp_path / "d.txt").write_text("")
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(b"packed"))
    assert read(tmp_path) == [TEXTS[1], TEXTS[0], TEXTS[2], "packed"]
    assert read(tmp_path, max_documents=2) == [TEXTS[1], TEXTS[0]]


def test_json_lines(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", *({"id": 1, "body": text} for text in [*TEXTS, "", None]))
    with path.open("a") as file:
        file.write("\n")
    assert read(path, text_field="body") == TEXTS
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed, text_field="body") == TEXTS


def test_parquet_in_several_batches(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"{text} {number}" for number in range(300) for text in TEXTS]
    parquet.write_table(arrow.table({"n": range(900), "body": [*texts]}), path, row_group_size=70)
    assert read(path, text_field="body") == texts


@pytest.mark.parametrize("options", ["group_size:1", "group_size:7"])
def test_array_record_of_text_or_json(tmp_path, options):
    texts = [f"{text} {number}" for number in range(300) for text in TEXTS]
    path = write_records(tmp_path / "a.arrayrecord", *(text.encode() for text in texts), options=options)
    assert read(path) == texts
    lines = (json.dumps({"text": text}).encode() for text in texts)
    assert read(write_records(tmp_path / "b.arrayrecord", *lines, options=options)) == texts


def test_hub_stream(monkeypatch):
    asked = {}

    def load_dataset(name: str, subset: str | None, **options: object) -> list[dict[str, str]]:
        asked.update(options, name=name, subset=subset)
        return [{"text": text} for text in TEXTS]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert list(documents(TextSource(hub="owner/set", subset="en", split="test", max_documents=2))) == TEXTS[:2]
    assert asked == {"name": "owner/set", "subset": "en", "split": "test", "revision": None, "streaming": True}
    with pytest.raises(UserError, match="owner/set, record 1: no field 'body'; there are text"):
        list(documents(TextSource(hub="owner/set", text_field="body")))


def test_hub_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="hub 'owner/set' needs a package: pip install datasets"):
        list(documents(TextSource(hub="owner/set")))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "cut', r"a.jsonl, line 2: not valid JSON .Unterminated string"),
        (b'["text"]', "a.jsonl, line 2: a JSON object is wanted, not list"),
        (b'{"body": "x", "id": 1}', "a.jsonl, line 2: no field 'text'; there are body, id; set text_field"),
        (b'{"chat": [{"role": "user"}]}', "no field 'text'; there are chat; set text_field, or messages for conversat"),
        (b'{"text": 3}', "a.jsonl, line 2: field 'text' is int, not text; set text_field"),
        (b'{"text": []}', "a.jsonl, line 2: field 'text' is list, not text; set messages in place of text_field"),
        (b'{"text": "\\ud800"}', "a.jsonl, line 2: field 'text' has a lone surrogate at character 0"),
        (b'{"text": "\xff"}', "a.jsonl, line 2: not UTF-8"),
        (b'{"text": ' + b"9" * 5000 + b"}", "a.jsonl, line 2: not JSON that can be read"),
        (b"[" * 100_000, "a.jsonl, line 2: not JSON that can be read"),
    ],
)
def test_json_lines_errors_name_the_line(tmp_path, line, said):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(UserError, match=said):
        read(tmp_path / "a.jsonl")


def test_other_errors_name_the_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\nbad \xff\n")
    with pytest.raises(UserError, match=r"a.txt, line 2: not UTF-8 .byte 9"):
        read(tmp_path / "a.txt")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"text" * 1000)[:-12])
    with pytest.raises(UserError, match="b.txt.gz: the compressed file is damaged or ends too early"):
        read(tmp_path / "b.txt.gz")
    (tmp_path / "c.jsonl.gz").write_bytes(b"not packed")
    with pytest.raises(UserError, match="c.jsonl.gz: cannot be read .Not a gzipped file"):
        read(tmp_path / "c.jsonl.gz")


def test_parquet_errors(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"body": ["x"], "n": [1]}), path)
    with pytest.raises(UserError, match="a.parquet: no column 'text'; there are body, n"):
        read(path)
    with pytest.raises(UserError, match="a.parquet, row 1: field 'n' is int"):
        read(path, text_field="n")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="a.parquet: not a whole Parquet file"):
        read(path, text_field="body")


def test_array_record_errors(tmp_path):
    path = write_records(tmp_path / "a.arrayrecord", b'{"text": "good"}', b'{"body": "bad"}')
    with pytest.raises(UserError, match="a.arrayrecord, record 2: no field 'text'"):
        read(path)
    path = write_records(tmp_path / "b.arrayrecord", b"good", b"\xff")
    with pytest.raises(UserError, match="b.arrayrecord, record 2: neither UTF-8 text nor a JSON object"):
        read(path)
    path.write_bytes(path.read_bytes()[:-999])
    with pytest.raises(UserError, match="b.arrayrecord: not a whole ArrayRecord file"):
        read(path)
