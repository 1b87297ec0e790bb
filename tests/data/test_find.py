import os
import pathlib
import shutil

import pytest

from chopjax.data.config import TextSource
from chopjax.data.find import find_files, source_digest
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


def test_mixed_formats_want_a_choice(tmp_path):
    write(tmp_path, "a.jsonl", "b.parquet", "README.md")
    with pytest.raises(UserError, match="several formats .jsonl, parquet, text.; set format"):
        names(tmp_path)
    assert names(tmp_path, format="parquet") == ("parquet", ["b.parquet"])
    assert names(tmp_path / "*.jsonl") == ("jsonl", ["a.jsonl"])


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
