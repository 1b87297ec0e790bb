"""The demo text: deterministic, about a tenth held out, nothing of it in the training part."""

import json
import random
from pathlib import Path
from pydoc_data.topics import topics

import demo_text
from hypothesis import given, settings
from hypothesis import strategies as st


def read(path: Path) -> dict[str, str]:
    return {row["topic"]: row["text"] for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def test_files_hold_every_topic_once_and_verbatim(tmp_path: Path) -> None:
    demo_text.make_folder(tmp_path)
    train, heldout = read(tmp_path / "train.jsonl"), read(tmp_path / "heldout.jsonl")
    assert not train.keys() & heldout.keys()
    assert {name: text.strip() for name, text in (train | heldout).items()} == {n: t.strip() for n, t in topics.items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heldout.jsonl", "train.jsonl"]


def test_no_heldout_sentence_is_in_training(tmp_path: Path) -> None:
    demo_text.make_folder(tmp_path)
    train, heldout = read(tmp_path / "train.jsonl"), read(tmp_path / "heldout.jsonl")
    seen = " ".join(" ".join(text.split()) for text in train.values())
    for text in heldout.values():
        words = text.split()
        for start in range(len(words) - demo_text.SHARED_WORDS + 1):
            assert " ".join(words[start : start + demo_text.SHARED_WORDS]) not in seen


def test_share_held_out() -> None:
    train, heldout = demo_text.split(topics)
    characters = sum(map(len, topics.values()))
    assert 0.08 < sum(len(topics[name]) for name in heldout) / characters <= 0.1
    assert len(heldout) > 10
    assert len(train) > 10


def test_same_files_every_time_whatever_the_order(tmp_path: Path) -> None:
    shuffled = list(topics.items())
    random.Random(0).shuffle(shuffled)
    demo_text.make_folder(tmp_path / "a")
    demo_text.make_folder(tmp_path / "b", dict(shuffled))
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=4), min_size=1, max_size=12))
def test_split_never_parts_overlapping_documents(chunks: list[list[int]]) -> None:
    """Documents of whole chunks of `SHARED_WORDS` words: two that share a chunk are on the same side."""
    documents = {
        f"document {number}": " ".join(
            f"word{chunk}.{place}" for chunk in own for place in range(demo_text.SHARED_WORDS)
        )
        for number, own in enumerate(chunks)
    }
    train, heldout = demo_text.split(documents, share=0.5)
    assert sorted([*train, *heldout]) == sorted(documents)
    held_chunks = {chunk for number, own in enumerate(chunks) if f"document {number}" in heldout for chunk in own}
    train_chunks = {chunk for number, own in enumerate(chunks) if f"document {number}" in train for chunk in own}
    assert not held_chunks & train_chunks
