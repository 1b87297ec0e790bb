"""Write the Python language reference, as `pydoc` carries it, to a training and a held-out JSONL file.

    python tools/demo_text.py runs/text

About half a megabyte of English that every Python has, with nothing to download. One line a document:
`{"topic": "...", "text": "..."}`.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics

from chopjax.files import write_text

HELDOUT_SHARE = 0.1
LARGEST_SHARE = 0.25  # of what is held out, for one group, so that no single text decides the held-out perplexity
SHARED_WORDS = (
    13  # the run of words by which Brown et al. 2020 (arXiv:2005.14165, appendix C) call two texts overlapping
)


def word_runs(text: str, length: int = SHARED_WORDS) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[start : start + length]) for start in range(max(1, len(words) - length + 1))}


def group_overlapping(documents: Mapping[str, str]) -> list[list[str]]:
    """The names in groups such that no two groups share a run of `SHARED_WORDS` words; sorted within and without.

    Topics quote each other at length ("with" is a part of "compound"), so a split by topic alone would leak.
    """
    parent = {name: name for name in documents}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    first_with: dict[tuple[str, ...], str] = {}
    for name in sorted(documents):
        for run in word_runs(documents[name]):
            parent[root(name)] = root(first_with.setdefault(run, name))
    groups: dict[str, list[str]] = {}
    for name in sorted(documents):
        groups.setdefault(root(name), []).append(name)
    return sorted(groups.values())


def split(documents: Mapping[str, str], share: float = HELDOUT_SHARE) -> tuple[list[str], list[str]]:
    """Names for training and names held out: groups go, in the order of their hashes, to held-out while they fit.

    What is held out is at most `share` of all characters; groups that do not fit, or are large, are for training.
    """

    def order(group: Sequence[str]) -> str:
        return hashlib.sha256(group[0].encode()).hexdigest()

    room = share * sum(map(len, documents.values()))
    largest = LARGEST_SHARE * room
    train, heldout = [], []
    for group in sorted(group_overlapping(documents), key=order):
        size = sum(len(documents[name]) for name in group)
        if size <= min(room, largest):
            room -= size
            heldout += group
        else:
            train += group
    return sorted(train), sorted(heldout)


def write_jsonl(path: Path, documents: Mapping[str, str], names: Sequence[str]) -> None:
    lines = (json.dumps({"topic": name, "text": documents[name].strip() + "\n"}, ensure_ascii=False) for name in names)
    write_text(path, "".join(line + "\n" for line in lines))


def make_folder(folder: Path, documents: Mapping[str, str] = topics) -> dict[str, list[str]]:
    """Write `train.jsonl` and `heldout.jsonl`; the names in each."""
    train, heldout = split(documents)
    parts = {"train": train, "heldout": heldout}
    for part, names in parts.items():
        write_jsonl(folder / f"{part}.jsonl", documents, names)
    return parts


def main() -> int:
    parser = argparse.ArgumentParser(description="Python's language reference as train.jsonl and heldout.jsonl.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for part, names in make_folder(folder).items():
        print(f"{folder / part}.jsonl: {len(names)} documents, {sum(len(topics[name]) for name in names)} characters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
