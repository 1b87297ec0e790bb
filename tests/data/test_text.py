import bz2
import gzip
import json
import lzma
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


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_long_text_file_is_read_in_pieces(tmp_path, monkeypatch, suffix):
    for name, value in {"LONGEST": 100, "PIECE": 40, "BLOCK": 7}.items():
        monkeypatch.setattr(f"chopjax.data.plain_text.{name}", value)
    paragraphs = [f"{number} größer, wüst: öde.\n\n" for number in range(9)]
    texts = {
        "paragraphs": paragraphs,
        "lines": ["über eine Zeile, noch\n"] * 9,
        "words": ["Überüberüberüberüber "] * 9,
        "none": ["ü" * 20] * 9,
        "odd": ["a" + "ü" * 19, *["ü" * 20] * 8],
        "wide": ["🐟" * 10] * 9,
        "short": ["ü" * 50],
    }
    for name, pieces in texts.items():
        path = tmp_path / f"{name}.txt{suffix}"
        data = "".join(pieces).encode()
        path.write_bytes(gzip.compress(data) if suffix else data)
        assert read(path) == pieces, name
    path.write_bytes((gzip.compress if suffix else bytes)(b"line\n" * 30 + b"\xff"))
    with pytest.raises(UserError, match="line 31: not UTF-8 .byte 150.; convert the file"):
        read(path)


def test_parquet_in_several_batches(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"{text} {number}" for number in range(300) for text in TEXTS]
    parquet.write_table(arrow.table({"n": range(900), "body": [*texts]}), path, row_group_size=70)
    assert read(path, text_field="body") == texts


def test_json_as_lists_objects_and_lines(tmp_path):
    records = [{"text": f"{text} {number}", "n": [number, {"a": "]}"}]} for number in range(3) for text in TEXTS]
    texts = [record["text"] for record in records]
    written = {
        "list": json.dumps(records, ensure_ascii=False),
        "pretty": "\ufeff" + json.dumps(records, indent=2),
        "lines": "".join(json.dumps(record) + "\n" for record in records),
        "objects": "\n".join(json.dumps(record, indent=1) for record in records),
    }
    for name, content in written.items():
        path = tmp_path / f"{name}.json"
        path.write_bytes(content.encode())
        assert read(path) == texts, name
    assert read(tmp_path) == texts * 4
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "none.json").write_text(" [] ")
    assert read(tmp_path / "[en]*e*.json") == []


def test_json_records_longer_than_one_read(tmp_path, monkeypatch):
    monkeypatch.setattr("chopjax.data.json_text.BLOCK", 7)
    records = [{"text": "ü" * number, "number": -1.5e-3, "none": None} for number in range(1, 60)]
    (tmp_path / "a.json").write_text(json.dumps(records), encoding="utf-8")
    assert read(tmp_path / "a.json") == [record["text"] for record in records]
    monkeypatch.setattr("chopjax.data.json_text.LONGEST", 50)
    with pytest.raises(UserError, match=r"a.json, line 1, record \d+: a record of more than 0 MiB is not read; split"):
        read(tmp_path / "a.json")
    write_lines(tmp_path / "b.jsonl", {"text": "a"}, {"text": "b" * 50})
    with pytest.raises(UserError, match=r"b.jsonl, line 2: a record of more than 0 MiB is not read; split"):
        read(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[{"text": "a"}\n{"text": "b"}]', "a.json, line 2: not valid JSON .no ',' in the list"),
        (b'[{"text": "a"},\n\n{"text": "b"', "a.json, line 3: not valid JSON .Expecting ',' delimiter"),
        (b'[{"text": "a"}', "a.json, line 1: not valid JSON .no ']' in the list"),
        (b'[{"text": "a"}]\nmore', "a.json, line 2: text follows the end of the JSON; remove it"),
        (b'["a"]', "a.json, line 1, record 1: str instead of a JSON object"),
        (b'{"text": "a"}\n[]', "a.json, line 2, record 2: list instead of a JSON object"),
        (b'{"text": "a"}\n{"body": 1}', "a.json, line 2, record 2: no field 'text'; there are body; set text_field"),
        (b'{"text": "a"}\n{"text": "\xff"}', "a.json: not UTF-8 after line 1; convert the file"),
        (b'[{"text": "a"},' + b"[" * 100_000, "a.json, line 1, record 2: not JSON that can be read"),
        (b"plain text", "a.json, line 1: not valid JSON .Expecting value"),
    ],
)
def test_json_errors_name_the_line_and_record(tmp_path, content, said):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read(tmp_path / "a.json")


def test_a_file_about_the_data_is_named_and_can_be_left_out(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_infos.json").write_text('{"default": {"features": {}}}')
    (tmp_path / "data" / "train-0.json").write_text(json.dumps([{"text": TEXTS[0]}]))
    with pytest.raises(UserError) as caught:
        read(tmp_path / "data")
    assert str(caught.value) == (
        f"{tmp_path}/data/dataset_infos.json, line 1, record 1: no field 'text'; there are default; set text_field, or "
        "leave the file out with a glob"
    )
    assert read(tmp_path / "data" / "train*") == TEXTS[:1]
    with pytest.raises(UserError, match="there are default; set text_field$"):
        read(tmp_path / "data" / "dataset_infos.json")


def test_advice_for_json_in_a_file_of_json_lines_works(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps([{"text": text} for text in TEXTS], indent=2))
    with pytest.raises(UserError, match="a.jsonl, line 1: not valid JSON .*; for a JSON list, .* set format='json'"):
        read(tmp_path / "a.jsonl")
    assert read(tmp_path / "a.jsonl", format="json") == TEXTS


COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: arrow.compress(data, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.jsonl", "A.JSON", "a.txt"])
def test_compressed_files(tmp_path, name, suffix):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    content = (lines if "json" in name.lower() else TEXTS[1]).encode()
    # Files of several frames, as pzstd and `cat` write them.
    frames = [COMPRESS[suffix](part) for part in (content[:9], content[9:])]
    path = tmp_path / f"{name}{suffix if name.islower() else suffix.upper()}"
    path.write_bytes(b"".join(frames))
    assert read(path) == (TEXTS if "json" in name.lower() else [TEXTS[1]])
    path.write_bytes(COMPRESS[suffix](content * 99)[:-9])
    with pytest.raises(
        UserError, match=f"{path.name}: (the compressed file is damaged or ends|cannot be read .Truncat)"
    ):
        read(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path.name}: (cannot be read|the compressed file is damaged)"):
        read(path)
    for plain in ("b.jsonl", "b.json", "b.txt", "b"):
        (tmp_path / plain).write_bytes(frames[0])
        kind = {".gz": "gzip", ".zst": "zstd"}.get(suffix, suffix[1:])
        with pytest.raises(UserError, match=f"{plain}: holds {kind} data, but its name does not end in {suffix}; ren"):
            read(tmp_path / plain)


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
        (b'["text"]', "a.jsonl, line 2: list instead of a JSON object"),
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
    (tmp_path / "d.txt").write_bytes(b"a" * (70 << 10) + b"\n\0")
    with pytest.raises(UserError, match="d.txt, line 2: holds a NUL character, so it is no plain text; leave it out"):
        read(tmp_path / "d.txt")


def test_parquet_errors(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"body": ["x"], "n": [1]}), path)
    with pytest.raises(UserError, match="a.parquet: no column 'text'; there are body, n"):
        read(path)
    with pytest.raises(UserError, match="a.parquet, row 1: field 'n' is int"):
        read(path, text_field="n")
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + b"\xff" * 24 + whole[-16:])
    with pytest.raises(UserError, match=r"^.*a.parquet: cannot be read .Couldn't deserialize thrift.*$") as caught:
        read(path, text_field="body")
    assert "\n" not in str(caught.value)
    path.write_bytes(whole[:-9])
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
