import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from data.packed import config_of, texts_in

from chopjax.data.config import DataConfig, TextSource
from chopjax.data.manifest import open_prepared
from chopjax.data.prepare import prepare, prepare_or_open
from chopjax.data.rows import RowsWriter
from chopjax.data.text import documents
from chopjax.data.tokenize import load_tokenizer
from chopjax.errors import UserError

# Prepares a corpus and is killed at the row given.
KILLED = """
import os, signal, sys
from chopjax.data import prepare, rows
from chopjax.data.config import DataConfig, TextSource
write = rows.RowsWriter.write
left = int(sys.argv[4])
def dying(self, *row):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, *row)
rows.RowsWriter.write = dying
config = DataConfig(sources=(TextSource(path=sys.argv[1], name="text"),), length=37, heldout_fraction=0.2)
prepare.prepare(config, sys.argv[2], sys.argv[3])
"""


def files_of(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Every file with its inode and time: equal only if nothing was written anew."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def test_each_document_is_in_one_split_whole_and_once(corpus, tokenizer_folder, tmp_path):
    source = TextSource(path=str(corpus(101)), name="text")
    manifest = prepare(config_of(source), tokenizer_folder, tmp_path / "out")
    ((train, weight),) = manifest.mixture()
    heldout = manifest.heldout()["text"]
    trained, kept = texts_in(train, tokenizer_folder), texts_in(heldout, tokenizer_folder)
    assert weight == 1.0 and len(kept) > 5
    assert not set(trained) & set(kept)
    order = list(documents(source))
    assert sorted(trained + kept, key=order.index) == order
    assert trained == [text for text in order if text in set(trained)]
    assert (len(trained), len(kept)) == (manifest.total("documents", "train"), manifest.total("documents", "heldout"))
    tokenizer = load_tokenizer(tokenizer_folder)
    count = sum(len(ids) + 1 for ids in tokenizer.encode(order))
    assert manifest.total("tokens", "train") + manifest.total("tokens", "heldout") == count
    assert manifest.max_token < tokenizer.vocab and manifest.tokenizer == tokenizer.digest
    assert open_prepared(tmp_path / "out") == manifest
    assert len(manifest.describe()) == 2 and "text" in manifest.describe()[1]


def test_the_split_does_not_depend_on_the_order_or_the_other_documents(corpus, tokenizer_folder, tmp_path):
    few = TextSource(path=str(corpus(40, "few.jsonl", start=30)), name="few")
    many = TextSource(path=str(corpus(101, "many.jsonl")), name="many")
    manifest = prepare(config_of(few, many), tokenizer_folder, tmp_path / "out")
    kept = {name: set(texts_in(rows, tokenizer_folder)) for name, rows in manifest.heldout().items()}
    assert kept["few"] == kept["many"] & set(documents(few))
    trained = {text for rows, _ in manifest.mixture() for text in texts_in(rows, tokenizer_folder)}
    assert not trained & (kept["few"] | kept["many"])


def test_documents_of_a_heldout_source_are_kept_out_of_the_others(corpus, tokenizer_folder, tmp_path):
    exam = TextSource(path=str(corpus(9, "exam.jsonl", start=20)), name="exam", heldout=True)
    source = TextSource(path=str(corpus(50)), name="text")
    manifest = prepare(config_of(source, exam, heldout_fraction=0.0), tokenizer_folder, tmp_path / "out")
    ((train, _),) = manifest.mixture()
    asked = set(documents(exam))
    assert set(texts_in(train, tokenizer_folder)) == set(documents(source)) - asked
    assert set(texts_in(manifest.heldout()["text"], tokenizer_folder)) == asked
    assert set(texts_in(manifest.heldout()["exam"], tokenizer_folder)) == asked


def test_done_once_and_new_weights_write_no_rows(corpus, tokenizer_folder, tmp_path):
    one, two = str(corpus(40, "one.jsonl")), str(corpus(30, "two.jsonl", start=100))
    out = tmp_path / "out"
    prepare(config_of(TextSource(path=one), TextSource(path=two)), tokenizer_folder, out)
    before = files_of(out)
    for name in (".one.jsonl.old", ".two.jsonl.writing"):  # as a killed process leaves them
        (out / name).mkdir()
        (out / name / "half").write_text("half")
    (out / ".manifest.json.17.tmp").write_text("{")
    said: list[str] = []
    config = config_of(TextSource(path=two, weight=3.0), TextSource(path=one))
    manifest = prepare(config, tokenizer_folder, out, say=said.append)
    assert said == [f"{name}.jsonl: rows are there already" for name in ("two", "one")]
    after = files_of(out)
    assert sorted(entry.name for entry in out.iterdir()) == ["manifest.json", "one.jsonl", "two.jsonl"]
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    assert [(rows.folder.parent.name, weight) for rows, weight in manifest.mixture()] == [
        ("two.jsonl", 3.0),
        ("one.jsonl", 1.0),
    ]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"length": 41}, "text: changed since they were written: length; its rows are written again"),
        (
            {"add_eos": "never", "heldout_fraction": 0.3},
            "text: changed since they were written: eos, heldout_fraction;",
        ),
    ],
)
def test_changed_settings_are_said_and_rows_replaced(corpus, tokenizer_folder, tmp_path, fields, said):
    source = TextSource(path=str(corpus(40)), name="text")
    prepare(config_of(source), tokenizer_folder, tmp_path / "out")
    lines: list[str] = []
    again = prepare(config_of(source, **fields), tokenizer_folder, tmp_path / "out", say=lines.append)
    assert len(lines) == 2 and lines[0].startswith(said) and lines[1] == "text: 1 file read as jsonl"
    fresh = prepare(config_of(source, **fields), tokenizer_folder, tmp_path / "fresh")
    assert again.parts == fresh.parts
    assert again.mixture()[0][0].info == fresh.mixture()[0][0].info


def test_changed_text_and_tokenizer_are_noticed(corpus, tokenizer_with, tokenizer_folder, tmp_path):
    path = corpus(40)
    config = config_of(TextSource(path=str(path), name="text"))
    out = tmp_path / "out"
    prepare(config, tokenizer_folder, out)
    corpus(41)
    lines: list[str] = []
    assert prepare(config, tokenizer_folder, out, say=lines.append).total("documents", "train") > 20
    assert "changed since they were written: text;" in lines[0]
    prepare(config, tokenizer_with(adds_bos=True), out, say=lines.append)
    assert "changed since they were written: bos;" in lines[2]


def test_damaged_rows_are_written_again(corpus, tokenizer_folder, tmp_path):
    config = config_of(TextSource(path=str(corpus(40)), name="text"))
    before = prepare(config, tokenizer_folder, tmp_path / "out")
    (tmp_path / "out" / "text" / "train" / "rows-00000.arrayrecord").write_bytes(b"cut")
    lines: list[str] = []
    assert prepare(config, tokenizer_folder, tmp_path / "out", say=lines.append) == before
    assert "rows-00000.arrayrecord has 3 bytes instead of" in lines[0]
    assert len(list(before.mixture()[0][0])) == before.total("rows", "train")


def test_foreign_folders_are_left_alone(corpus, tokenizer_folder, tmp_path):
    (tmp_path / "out" / "text").mkdir(parents=True)
    (tmp_path / "out" / "text" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="text holds 'thesis.tex', which is not rows"):
        prepare(config_of(TextSource(path=str(corpus(9)), name="text")), tokenizer_folder, tmp_path / "out")
    assert (tmp_path / "out" / "text" / "thesis.tex").read_text() == "years of work"


def test_bad_text_leaves_nothing(corpus, tokenizer_folder, tmp_path):
    path = corpus(600)
    with path.open("a") as file:
        file.write('{"body": 1}\n')
    with pytest.raises(UserError, match="corpus.jsonl, line 601: no field 'text'"):
        prepare(config_of(TextSource(path=str(path), name="text")), tokenizer_folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def appended(file: pathlib.Path) -> None:
    with file.open("a") as opened:
        opened.write(json.dumps({"text": "more"}) + "\n")


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (
            lambda folder, exam: appended(folder / "b.jsonl"),
            "{folder}/b.jsonl: changed while it was read; run again when no other process writes to it",
        ),
        (
            lambda folder, exam: (folder / "b.jsonl").write_text('{"text": '),  # also where that is an error by itself
            "{folder}/b.jsonl: changed while it was read; run again when no other process writes to it",
        ),
        (
            lambda folder, exam: shutil.copy(folder / "a.jsonl", folder / "c.jsonl"),
            "data.sources: {folder}: files came or went while it was read; run again when no other process writes "
            "there",
        ),
        (
            lambda folder, exam: appended(exam),
            "{exam}: changed while it was read; run again when no other process writes to it",
        ),
    ],
    ids=["appended", "broken", "another", "heldout"],
)
def test_text_that_changes_while_it_is_read_is_refused_and_leaves_nothing(
    corpus, tokenizer_folder, tmp_path, monkeypatch, happens, said
):
    folder, out = tmp_path / "text", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b"):
        corpus(40).rename(folder / f"{name}.jsonl")
    exam = corpus(9, "exam.jsonl", start=20)
    sources = TextSource(path=str(folder)), TextSource(path=str(exam), heldout=True)
    write, left = RowsWriter.write, [5]

    def changing(self: RowsWriter, *row: np.ndarray) -> None:
        left[0] -= 1
        if not left[0]:
            happens(folder, exam)
        write(self, *row)

    monkeypatch.setattr(RowsWriter, "write", changing)
    with pytest.raises(UserError) as caught:
        prepare(config_of(*sources), tokenizer_folder, out)
    assert str(caught.value) == said.format(folder=folder, exam=exam)
    assert [entry.name for entry in out.iterdir()] == (["text"] if "exam" in said else [])
    monkeypatch.undo()
    shutil.copy(folder / "a.jsonl", folder / "b.jsonl")
    assert (
        prepare(config_of(*sources), tokenizer_folder, out).parts
        == prepare(config_of(*sources), tokenizer_folder, tmp_path / "fresh").parts
    )


@pytest.mark.parametrize("row", [0, 17])
def test_killed_while_writing_no_folder_is_left_and_the_next_run_is_clean(corpus, tokenizer_folder, tmp_path, row):
    path, out = corpus(60), tmp_path / "out"
    arguments = [sys.executable, "-c", KILLED, str(path), str(tokenizer_folder), str(out), str(row)]
    assert subprocess.run(arguments, env=os.environ).returncode == -signal.SIGKILL
    assert not (out / "text").exists() and not (out / "manifest.json").exists()
    config = config_of(TextSource(path=str(path), name="text"))
    again = prepare(config, tokenizer_folder, out)
    assert again.parts == prepare(config, tokenizer_folder, tmp_path / "fresh").parts
    assert sorted(entry.name for entry in out.iterdir()) == ["manifest.json", "text"]


def test_what_does_not_fit_the_model(corpus, tokenizer_folder, tmp_path):
    source, out = TextSource(path=str(corpus(40)), name="text"), tmp_path / "out"
    with pytest.raises(UserError, match="data.length is 37, but the model has 36 positions"):
        prepare(config_of(source), tokenizer_folder, out, positions=36)
    with pytest.raises(UserError, match=r"text: token id \d+ is outside the model's vocabulary of 99"):
        prepare(config_of(source), tokenizer_folder, out, vocab=99)
    assert not (out / "text").exists()
    prepare(config_of(source), tokenizer_folder, out, positions=37, vocab=300)
    with pytest.raises(UserError, match=r"token id \d+ is outside the model's vocabulary of 99"):
        prepare(config_of(source), tokenizer_folder, out, vocab=99)


def test_splits_that_would_come_out_empty_are_refused_with_a_fraction_that_works(corpus, tokenizer_folder, tmp_path):
    source, out = TextSource(path=str(corpus(3)), name="text"), tmp_path / "out"
    with pytest.raises(UserError) as none:
        prepare(config_of(source, heldout_fraction=1e-6), tokenizer_folder, out)
    with pytest.raises(UserError) as all_of_them:
        prepare(config_of(source, heldout_fraction=1 - 1e-9), tokenizer_folder, out)
    assert str(none.value) == (
        "data.heldout_fraction is 1e-06, but none of the 3 documents fell to the held-out rows; set it to 0.203, mark "
        "a source as heldout, or set it to 0 for none"
    )
    assert str(all_of_them.value) == (
        "data.sources: text gives no row to train on (3 documents, all held out by data.heldout_fraction = "
        "0.999999999); set it to 0.63, or set it to 0 for none"
    )
    for share in (0.203, 0.63):
        manifest = prepare(config_of(source, heldout_fraction=share), tokenizer_folder, out)
        assert manifest.total("documents", "heldout") in (1, 2)


def test_one_record_cannot_be_held_out_by_any_fraction(corpus, tokenizer_folder, tmp_path):
    source, out = TextSource(path=str(corpus(1)), name="text"), tmp_path / "out"
    for fraction, said in (
        (1e-6, "but none of the 1 document fell"),
        (1 - 1e-9, "no row to train on .1 document, all"),
    ):
        with pytest.raises(UserError, match=f"{said}.*; give more documents, .* set it to 0 for none"):
            prepare(config_of(source, heldout_fraction=fraction), tokenizer_folder, out)
    assert prepare(config_of(source, heldout_fraction=0), tokenizer_folder, out).total("documents", "train") == 1


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_a_source_that_is_wholly_in_a_heldout_one_is_refused(corpus, tokenizer_folder, tmp_path, fraction):
    path = str(corpus(5))
    sources = TextSource(path=path, name="text"), TextSource(path=path, name="exam", heldout=True)
    said = "text gives no row to train on .all its documents are in held-out sources too.; leave out one of the two"
    with pytest.raises(UserError, match=said):
        prepare(config_of(*sources, heldout_fraction=fraction), tokenizer_folder, tmp_path / "out")


def test_sources_by_the_same_name(corpus, tokenizer_folder, tmp_path):
    source = TextSource(path=str(corpus(3)))
    with pytest.raises(UserError, match="two sources are called 'corpus.jsonl'"):
        prepare(config_of(source, source), tokenizer_folder, tmp_path / "out")


def test_rows_prepared_before_are_opened_and_checked(corpus, tokenizer_folder, tokenizer_with, tmp_path):
    source = TextSource(path=str(corpus(40)), name="text")
    made = prepare_or_open(config_of(source), tokenizer_folder, tmp_path / "default")
    assert made.folder == tmp_path / "default"
    config = DataConfig(rows=str(tmp_path / "default"))
    assert prepare_or_open(config, tokenizer_folder, tmp_path / "x", positions=37, vocab=300) == made
    with pytest.raises(UserError, match="data.length is 37, but the model has 36 positions"):
        prepare_or_open(config, tokenizer_folder, tmp_path / "x", positions=36)
    with pytest.raises(UserError, match="outside the model's vocabulary of 99"):
        prepare_or_open(config, tokenizer_folder, tmp_path / "x", vocab=99)
    other = tokenizer_with()
    core = tokenizers.Tokenizer.from_file(str(other / "tokenizer.json"))
    core.add_tokens(["<extra>"])
    core.save(str(other / "tokenizer.json"))
    with pytest.raises(UserError, match="default and the model have different tokenizers"):
        prepare_or_open(config, other, tmp_path / "x")
    with pytest.raises(UserError, match="data.sources and data.rows are both empty"):
        prepare_or_open(DataConfig(), tokenizer_folder, tmp_path / "x")
    with pytest.raises(UserError, match="nowhere has no manifest.json"):
        prepare_or_open(DataConfig(rows=str(tmp_path / "nowhere")), tokenizer_folder, tmp_path / "x")


def test_a_manifest_older_than_its_rows_is_noticed(corpus, tokenizer_folder, tmp_path):
    source = TextSource(path=str(corpus(40)), name="text")
    out = tmp_path / "out"
    prepare(config_of(source), tokenizer_folder, out)
    manifest = (out / "manifest.json").read_text()
    prepare(config_of(source, length=41), tokenizer_folder, out)
    (out / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match="train was written after manifest.json"):
        open_prepared(out).mixture()


MANIFEST = {"format": "chopjax prepared data 1", "length": 8, "tokenizer": "t", "max_token": 5}
COUNTS = {name: {"train": 1, "heldout": 0} for name in ("rows", "tokens", "documents")}
PART = {"name": "a", "weight": 1.0, "heldout": False, "digest": "d", **COUNTS}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 1}, "format is 1, not 'chopjax prepared data 1'; run chopjax.prepare_data again"),
        ({"parts": [{}]}, r"manifest.json: parts\[0\].name is missing"),
        ({"parts": [PART | {"name": "../.."}]}, r"parts\[0\].name is '../..', not a plain name"),
        ({"parts": [PART | {"name": "/tmp"}]}, r"parts\[0\].name is '/tmp', not a plain name"),
        ({"parts": [PART | {"name": "a\0b"}]}, r"parts\[0\].name is 'a\\x00b', not a plain name"),
        ({"parts": [PART | {"rows": {"train": 1}}]}, "rows of a lacks heldout"),
        ({"parts": [PART, PART]}, "two parts have the same name"),
        ({"parts": [PART | {"weight": -1}]}, "weight is -1, not a number of 0 or more"),
    ],
)
def test_foreign_manifests(tmp_path, change, said):
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST | change))
    with pytest.raises(UserError, match=said):
        open_prepared(tmp_path)
