"""Plain text files too few to hold whole ones out: the end of each is held out."""

import json
import pathlib

import pytest
from data.conftest import SENTENCES
from data.packed import config_of, texts_in

from chopjax.data.config import TextSource
from chopjax.data.manifest import Manifest, open_prepared
from chopjax.data.prepare import prepare
from chopjax.errors import UserError

TEXT = "\n\n".join(f"Paragraph {number}. {SENTENCES[number % 5].strip()}" for number in range(400))


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "corpus.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "corpus.txt"


def split(manifest: Manifest, folder: pathlib.Path) -> dict[str, tuple[list[str], list[str]]]:
    """By source the documents to train on and those that are held out."""
    kept = {name: texts_in(rows, folder) for name, rows in manifest.heldout().items()}
    return {
        rows.folder.parent.name: (texts_in(rows, folder), kept.get(rows.folder.parent.name, []))
        for rows, _ in manifest.mixture()
    }


@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.98])
def test_one_text_file_is_divided_at_a_paragraph_and_nothing_is_lost(file, tokenizer_folder, tmp_path, fraction):
    said: list[str] = []
    config = config_of(TextSource(path=str(file)), heldout_fraction=fraction)
    manifest = prepare(config, tokenizer_folder, tmp_path / "out", say=said.append)
    (((first,), (last,)),) = split(manifest, tokenizer_folder).values()
    assert first + last == TEXT and first.endswith("\n\n") and last.startswith("Paragraph")
    assert abs(len(last) / len(TEXT) - fraction) < 0.005
    assert said == [
        f"corpus.txt: one document, so its end is held out: the last {100 * fraction:.3g} % of "
        f"{len(TEXT):,} characters",
        "corpus.txt: 1 file read as text (.txt)",
    ]
    assert manifest.describe()[1].endswith("  (one document, end held out)")
    assert open_prepared(tmp_path / "out") == manifest


def test_divided_rows_are_written_once_and_follow_the_fraction(file, tokenizer_folder, tmp_path):
    source, said = TextSource(path=str(file)), list[str]()
    made = prepare(config_of(source, heldout_fraction=0.02), tokenizer_folder, tmp_path / "out")
    again = prepare(config_of(source, heldout_fraction=0.02), tokenizer_folder, tmp_path / "out", say=said.append)
    assert again == made and said[1:] == ["corpus.txt: rows are there already"]
    prepare(config_of(source, heldout_fraction=0.03), tokenizer_folder, tmp_path / "out", say=said.append)
    assert said[3] == "corpus.txt: changed since they were written: heldout_fraction; its rows are written again"
    prepare(config_of(source, heldout_fraction=0), tokenizer_folder, tmp_path / "out", say=said.append)
    assert (
        said[5] == "corpus.txt: changed since they were written: heldout_fraction, divided; its rows are written again"
    )


def test_of_a_few_files_the_end_of_each_long_one_is_held_out(file, tokenizer_folder, tmp_path):
    (tmp_path / "short.txt").write_text("A short one.")
    (tmp_path / "second.txt").write_text(TEXT[::-1], encoding="utf-8")
    source = TextSource(path=f"{tmp_path}/*.txt", name="texts")
    manifest = prepare(config_of(source, heldout_fraction=0.02), tokenizer_folder, tmp_path / "out")
    trained, kept = split(manifest, tokenizer_folder)["texts"]
    assert [trained[0] + kept[0], trained[1] + kept[1], trained[2]] == [TEXT, TEXT[::-1], "A short one."]
    assert manifest.describe()[1].endswith("  (2 documents, end held out)")


def test_the_same_text_elsewhere_is_divided_likewise(file, tokenizer_folder, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": text}) + "\n" for text in (TEXT, "A short one.")))
    config = config_of(TextSource(path=str(file)), TextSource(path=str(other)), heldout_fraction=0.02)
    found = split(prepare(config, tokenizer_folder, tmp_path / "out"), tokenizer_folder)
    assert found["other.jsonl"] == ([found["corpus.txt"][0][0], "A short one."], found["corpus.txt"][1])


def test_nothing_is_divided_where_another_source_holds_something_out(file, corpus, tokenizer_folder, tmp_path):
    sources = TextSource(path=str(file)), TextSource(path=str(corpus(101)))
    manifest = prepare(config_of(*sources, heldout_fraction=0.02), tokenizer_folder, tmp_path / "out")
    assert split(manifest, tokenizer_folder)["corpus.txt"] == ([TEXT], [])
    exam = TextSource(path=str(corpus(3, "exam.jsonl")), heldout=True)
    manifest = prepare(config_of(sources[0], exam, heldout_fraction=0.02), tokenizer_folder, tmp_path / "out")
    assert split(manifest, tokenizer_folder)["corpus.txt"] == ([TEXT], [])


def test_a_text_too_short_for_the_fraction_is_refused_with_one_that_works(tokenizer_folder, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT[:2000], encoding="utf-8")
    source = TextSource(path=str(tmp_path / "a.txt"))
    with pytest.raises(UserError) as caught:
        prepare(config_of(source, heldout_fraction=0.02), tokenizer_folder, tmp_path / "out")
    assert str(caught.value) == (
        "data.heldout_fraction is 0.02, but none of the 1 document fell to the held-out rows; set it to 0.13, mark a "
        "source as heldout, or set it to 0 for none"
    )
    manifest = prepare(config_of(source, heldout_fraction=0.13), tokenizer_folder, tmp_path / "out")
    assert manifest.total("documents", "heldout") == 1
