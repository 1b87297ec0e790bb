import os
import pathlib
import shutil

import pytest

from chopjax.data.config import TextSource
from chopjax.data.find import described, find_files, source_digest
from chopjax.errors import UserError


def write(folder: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def names(path: object, **fields: str) -> tuple[str, list[str]]:
    kind, named = find_files(TextSource(path=str(path), **fields))
    assert all(file.is_file() and file.as_posix().endswith(name) for name, file in named)
    return kind, [name for name, _ in named]


def test_a_folder_is_read_recursively_and_sorted_without_hidden_files(tmp_path):
    write(tmp_path, "b.txt", "a/z.txt", "a/b.py", ".git/x.txt", ".hidden")
    assert names(tmp_path) == ("text", ["a/b.py", "a/z.txt", "b.txt"])


def test_format_goes_by_the_names(tmp_path):
    write(tmp_path, "j/a.jsonl", "j/b.ndjson", "g/a.jsonl.gz", "p/a.PARQUET", "r/a.array_record", "t/readme")
    assert [names(tmp_path / part)[0] for part in "jgprt"] == ["jsonl", "jsonl", "parquet", "arrayrecord", "text"]
    assert names(tmp_path / "t/readme", format="jsonl") == ("jsonl", ["readme"])


def refusal(path: object, **fields: str) -> str:
    with pytest.raises(UserError) as caught:
        find_files(TextSource(path=str(path), **fields))
    return str(caught.value)


def test_advice_on_mixed_formats_works(tmp_path):
    write(tmp_path, "a.jsonl", "deep/b.jsonl", "b.parquet", "README.md")
    assert refusal(tmp_path) == (
        f"data.sources: {tmp_path} holds files of several formats (jsonl: 2 such as a.jsonl, parquet: 1 such as "
        "b.parquet, text: 1 such as README.md); set format='jsonl' to read those files alone, set format='parquet' to "
        f"read those files alone, or use a glob, such as path='{tmp_path}/**/*.jsonl*'"
    )
    assert names(tmp_path, format="parquet") == ("parquet", ["b.parquet"])
    assert names(tmp_path, format="jsonl") == ("jsonl", ["a.jsonl", "deep/b.jsonl"])
    assert names(f"{tmp_path}/**/*.jsonl*") == ("jsonl", ["a.jsonl", "deep/b.jsonl"])


def test_advice_on_plain_text_with_tables_and_json_works(tmp_path):
    write(tmp_path, "a.py", "b.py", "c.csv", "package.json")
    assert refusal(tmp_path).endswith(
        "(csv: 1 such as c.csv, json: 1 such as package.json, text: 2 such as a.py); set format='json' to read those "
        "files alone, set format='text' to read every file as plain text, or use a glob, such as "
        f"path='{tmp_path}/**/*.py*'"
    )
    assert names(tmp_path, format="text") == ("text", ["a.py", "b.py", "c.csv", "package.json"])
    assert names(f"{tmp_path}/**/*.py*") == ("text", ["a.py", "b.py"])
    assert refusal(f"{tmp_path}/*").endswith("or use a glob, such as path='*.py*'")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.csv", "CSV files are not read; convert it to JSON lines or Parquet, or set format='text' to read the file"),
        ("a.TSV.gz", "TSV files are not read; convert it to JSON lines or Parquet"),
        ("a.html", "HTML files are not read; extract its text into .txt files or JSON lines, or set format='text' to"),
        ("a.pdf", "PDF files are not read; extract its text into .txt files or JSON lines, or leave it out"),
        ("a.tar.gz", "TAR files are not read; unpack it"),
        ("a.zip", "ZIP files are not read; unpack it"),
        ("a.npy", "NPY files are not read; convert it to JSON lines or Parquet"),
        ("a.png", "PNG files are not read; leave it out with a glob"),
        ("a.parquet.gz", "a compressed parquet file is not read; decompress it"),
        ("a.arrayrecord.zst", "a compressed arrayrecord file is not read; decompress it"),
        ("a.txt.gz.gz", "it is compressed twice; decompress it once"),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path, name, said):
    write(tmp_path, name)
    assert refusal(tmp_path).startswith(f"{tmp_path / name}: {said}")
    assert refusal(tmp_path / name).startswith(f"{tmp_path / name}: {said}")


def test_what_is_no_text_is_refused_by_its_bytes(tmp_path):
    (tmp_path / "a.weights").write_bytes(b"abc\0def")
    assert refusal(tmp_path) == (
        f"{tmp_path / 'a.weights'}: holds NUL bytes, so it is no text, and its name tells no format that is read; "
        "leave it out with a glob"
    )
    (tmp_path / "b.txt").write_text("wide", encoding="utf-16")
    assert refusal(tmp_path / "b.txt") == (
        f"{tmp_path / 'b.txt'}: UTF-16 text; convert it to UTF-8, as with iconv -f UTF-16 -t UTF-8"
    )
    assert "(binary: 2 such as a.weights, text: 1 such as c.txt); use a glob" in refusal(write(tmp_path, "c.txt"))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"text": "a"}\n{"text": "b"}\n', "jsonl"),
        (b'\n{"text": "one"}', "jsonl"),
        (b'{"text": "a"}\n{"text": "damaged', "jsonl"),
        (b'["a", 1]\n["b", 2]\n', "jsonl"),
        (b'{"text": "' + b"long " * 20_000 + b'"}\n', "json"),
        (b'[\n {"text": "a"}\n]\n', "json"),
        (b'[{"text": "a"}, ' * 20_000, "json"),
        (b'{\n "text": "a"\n}\n{\n "text": "b"\n}\n', "json"),
        (b'{"n": -1.5e' + b"1" * 70_000, "json"),
        (b"{}", "json"),
        (b"[1] A reference.", "text"),
        (b"{not JSON}", "text"),
        (b'{"text": "cut', "text"),
        (b'"a string"', "text"),
        (b"42", "text"),
        (b"", "text"),
        ("é".encode() * 40_000, "text"),
        (b"latin \xe9", "text"),
    ],
)
def test_json_is_never_guessed_to_be_plain_text(tmp_path, content, kind):
    for name in ("part-00000", "corpus.txt"):
        (tmp_path / name).write_bytes(content)
        assert names(tmp_path / name)[0] == kind
        assert names(tmp_path / name, format="text")[0] == "text"


def test_a_stated_format_wins_over_names(tmp_path):
    write(tmp_path / "one", "part-00000", "part.0001", "x.foo")
    assert names(tmp_path / "one", format="jsonl") == ("jsonl", ["part-00000", "part.0001"])
    write(tmp_path / "two", "a.json", "b.json.zst", "c.txt")
    assert names(tmp_path / "two", format="jsonl") == ("jsonl", ["a.json", "b.json.zst"])
    assert names(tmp_path / "two" / "c.txt", format="parquet") == ("parquet", ["c.txt"])


def test_what_is_read_as_what_is_one_line(tmp_path):
    def line(path: pathlib.Path, **fields: str) -> str:
        return described(TextSource(path=str(path), name="source", **fields))

    write(tmp_path / "text", "a.txt", "b.txt", "c.md", "README")
    assert line(tmp_path / "text") == "source: 4 files read as text (2 .txt, 1 no suffix, 1 .md)"
    assert line(tmp_path / "text" / "a.txt") == "source: 1 file read as text (.txt)"
    (tmp_path / "lines").mkdir()
    for name in ("a.jsonl", "b.jsonl.GZ", "c.jsonl.gz"):
        (tmp_path / "lines" / name).write_bytes(b"")
    assert line(tmp_path / "lines") == "source: 3 files read as jsonl (2 gzip)"
    assert line(tmp_path / "lines" / "c.jsonl.gz") == "source: 1 file read as jsonl (gzip)"
    (tmp_path / "part").write_text('{"text": "a"}')
    assert line(tmp_path / "part") == "source: 1 file read as jsonl (no suffix, by their contents)"
    write(tmp_path / "lines", "data.parquet")
    (tmp_path / "lines" / "link").symlink_to(tmp_path / "text")
    assert line(tmp_path / "lines", format="parquet") == (
        "source: 1 file read as parquet (3 of other formats left out, 1 links to folders not followed)"
    )
    assert described(TextSource(hub="owner/set")) == "owner-set-train: owner/set, read from the hub"


def test_pipes_and_broken_links_are_refused_by_name(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    said = f"data.sources: {tmp_path}/pipe.txt is a pipe, socket or device, not a file; save its text to a file"
    assert {refusal(tmp_path), refusal(tmp_path / "pipe.txt"), refusal(tmp_path / "*.txt")} == {said}
    assert (
        refusal("/dev/zero")
        == "data.sources: /dev/zero is a pipe, socket or device, not a file; save its text to a file"
    )
    (tmp_path / "pipe.txt").unlink()
    (tmp_path / "shard.jsonl").symlink_to(tmp_path / "gone.jsonl")
    said = f"data.sources: {tmp_path}/shard.jsonl is a broken link"
    assert {refusal(tmp_path), refusal(tmp_path / "shard.jsonl")} == {said}


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no text files at .*nowhere"):
        names(tmp_path / "nowhere")
    write(tmp_path, "a.txt")
    with pytest.raises(UserError, match="no parquet files"):
        names(tmp_path, format="parquet")


@pytest.mark.parametrize("pattern", ["", "/*.txt", "/**/*.txt"])
def test_digest_follows_content_and_names_only(tmp_path, pattern):
    write(tmp_path / "one", "a.txt", "b.txt")
    source = TextSource(path=f"{tmp_path / 'one'}{pattern}")
    before = source_digest(source)
    os.utime(tmp_path / "one" / "a.txt", (1, 1))
    assert source_digest(source) == before
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert source_digest(TextSource(path=f"{tmp_path / 'two'}{pattern}", weight=3.0)) == before
    (tmp_path / "one" / "a.txt").write_text("A.txt")
    assert source_digest(source) != before
    (tmp_path / "two" / "a.txt").rename(tmp_path / "two" / "c.txt")
    assert source_digest(TextSource(path=f"{tmp_path / 'two'}{pattern}")) != before


def test_digests_of_earlier_versions_hold(tmp_path):
    write(tmp_path, "a.txt", "b.py")
    assert source_digest(TextSource(path=str(tmp_path))) == "ae148433314d24fd"
    (tmp_path / "c.jsonl.gz").write_bytes(b"never opened")
    assert source_digest(TextSource(path=str(tmp_path / "c.jsonl.gz"))) == "87a81ed19fb90e5d"
    (tmp_path / "d.json").write_bytes(b"{}")
    assert source_digest(TextSource(path=str(tmp_path / "*.json"), format="jsonl")) == "efe9b331b5756544"


def test_digest_of_a_file_that_is_read_in_pieces_is_another(tmp_path, monkeypatch):
    source = TextSource(path=str(write(tmp_path, "a.txt") / "a.txt"))
    before = source_digest(source)
    monkeypatch.setattr("chopjax.data.find.LONGEST", 4)
    assert source_digest(source) != before


def test_digest_follows_how_the_text_is_read(tmp_path):
    path = str(write(tmp_path, "a.jsonl") / "a.jsonl")
    sources = [
        TextSource(path=path),
        TextSource(path=path, text_field="body"),
        TextSource(path=path, max_documents=3),
        TextSource(path=path, format="text"),
        TextSource(hub="owner/set"),
        TextSource(hub="owner/set", revision="abc"),
    ]
    assert len({source_digest(source) for source in sources}) == len(sources)
