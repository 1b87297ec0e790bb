"""Write English prose of several kinds, from Debian's documentation packages, to one JSONL file a kind.

    python tools/prose.py runs/prose [--characters 400000]

Needs `apt-get` and `dpkg` (Debian, Ubuntu), but neither root nor an installation: packages are downloaded and
unpacked in a temporary folder. One line a document: `{"text": "..."}`.
"""

import argparse
import gzip
import hashlib
import html
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from chopjax.files import write_text

LEAST = 400  # characters of a document


def whole(text: str) -> Iterator[str]:
    yield text


def from_html(text: str) -> Iterator[str]:
    body = re.sub(r"(?is)<(script|style|nav|head)\b.*?</\1>", " ", text)
    blocks = re.sub(r"(?i)</?(p|div|h\d|li|pre|br|tr|title|dd|dt)\b[^>]*>", "\n", body)
    plain = html.unescape(re.sub(r"<[^>]+>", "", blocks))
    lines = (" ".join(line.split()) for line in plain.splitlines())
    yield "\n".join(line for line in lines if line)


def cookies(text: str) -> Iterator[str]:
    """Fortunes, which are short: many to a document."""
    for start in range(0, len(parts := text.split("\n%\n")), 20):
        yield "\n\n".join(part.strip() for part in parts[start : start + 20])


def glosses(text: str) -> Iterator[str]:
    """Entries of a WordNet data file: words and what they mean."""
    lines = [line for line in text.splitlines() if " | " in line and not line.startswith(" ")]
    entries = []
    for line in lines:
        fields, gloss = line.split(" | ", 1)
        words = [word.replace("_", " ") for word in re.findall(r"([A-Za-z_'-]+) [0-9a-f] ", fields[17:])]
        entries.append(f"{', '.join(dict.fromkeys(words))}: {gloss.strip()}")
    for start in range(0, len(entries), 40):
        yield "\n".join(entries[start : start + 40])


# Kind → package, files in it, and what to make of each.
KINDS: dict[str, tuple[str, str, Callable[[str], Iterator[str]]]] = {
    "kernel": ("linux-doc-6.1", "usr/share/doc/linux-doc-6.1/Documentation/**/*.rst.gz", whole),
    "perl": ("perl-doc", "usr/share/perl/**/*.pod", whole),
    "handbook": ("debian-handbook", "usr/share/doc/debian-handbook/html/en-US/*.html", from_html),
    "fortunes": ("fortunes", "usr/share/games/fortunes/*", cookies),
    "wordnet": ("wordnet-base", "usr/share/wordnet/data.*", glosses),
    "python": ("python3.11-doc", "usr/share/doc/python3.11/html/_sources/**/*.rst.txt", whole),
}


def read(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", errors="ignore")


def documents(root: Path, pattern: str, parse: Callable[[str], Iterator[str]]) -> list[str]:
    """All documents, in an order that mixes files and is always the same."""
    paths = (path for path in root.glob(pattern) if path.is_file() and not path.is_symlink() and path.suffix != ".dat")
    found = {text for path in paths for text in parse(read(path)) if len(text) >= LEAST}
    return sorted(found, key=lambda text: hashlib.sha256(text.encode()).hexdigest())


def fetch(package: str, folder: Path) -> Path:
    subprocess.run(["apt-get", "download", "-q", package], cwd=folder, check=True, capture_output=True)
    (archive,) = folder.glob(f"{package}_*.deb")
    subprocess.run(["dpkg", "-x", archive, folder / package], check=True)
    return folder / package


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--characters", type=int, default=400_000, help="of each kind, cut at the end of a document")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for kind, (package, pattern, parse) in KINDS.items():
            lines, size = [], 0
            for text in documents(fetch(package, Path(folder)), pattern, parse):
                if size >= options.characters:
                    break
                lines.append(json.dumps({"text": text[:20_000]}) + "\n")
                size += min(len(text), 20_000)
            write_text(options.out / f"{kind}.jsonl", "".join(lines))
            print(f"{kind}: {len(lines)} documents, {size:,} characters, from {package}")


if __name__ == "__main__":
    main()
