"""Finding a source's files, and digests that notice when they change."""

import glob
import pathlib
from collections.abc import Sequence
from typing import Any

from chopjax import files, paths
from chopjax.data.config import TextSource
from chopjax.errors import UserError

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrayrecord": "arrayrecord",
    ".array_record": "arrayrecord",
}


def suffix_format(path: pathlib.Path) -> str:
    """The format that a file's name tells (`.gz` aside): `text` where it tells none."""
    name = path.name.removesuffix(".gz")
    return SUFFIXES.get(pathlib.PurePath(name).suffix.lower(), "text")


def find_files(source: TextSource) -> tuple[str, list[tuple[str, pathlib.Path]]]:
    """The format of a source and its files in sorted order.

    Returns:
        The format, and pairs of (name relative to the source's folder, path).

    Raises:
        UserError: nothing is there, or the names tell several formats and the source names none.
    """
    named = _named_files(source.path)
    if source.format and source.format != "text":
        chosen = [pair for pair in named if suffix_format(pair[1]) == source.format]
        named = chosen or ([] if paths.make(source.path).is_dir() else named)
    if not named:
        raise UserError(f"data.sources: no {source.format or 'text'} files at {source.path}; check path and format")
    formats = sorted({suffix_format(path) for _, path in named})
    if source.format:
        return source.format, named
    if len(formats) > 1:
        raise UserError(
            f"data.sources: {source.path} holds files of several formats ({', '.join(formats)}); "
            "set format, or use a glob"
        )
    return formats[0], named


def _named_files(path: str) -> list[tuple[str, pathlib.Path]]:
    root = paths.make(path)
    if root.is_file():
        return [(root.name, root)]
    if root.is_dir():
        names = (pathlib.PurePosixPath(name) for name in paths.inside(root))
        found = [
            (name.as_posix(), root / name) for name in names if not any(part.startswith(".") for part in name.parts)
        ]
    elif paths.is_remote(root):
        folder = paths.make("/".join(_fixed(path.split("/"))))
        found = [(file.relative_to(folder).as_posix(), file) for file in paths.matching(path)]
    else:
        # Names are told apart by what follows the part of the pattern that is fixed, so that moving all files
        # together changes no digest.
        fixed = pathlib.PurePath(*_fixed_parts(path))
        found = [
            (pathlib.PurePath(file).relative_to(fixed).as_posix(), pathlib.Path(file))
            for file in glob.glob(path, recursive=True)
            if pathlib.Path(file).is_file()
        ]
    return sorted(found, key=lambda pair: pair[0])


def _fixed_parts(pattern: str) -> tuple[str, ...]:
    return tuple(_fixed(pathlib.PurePath(pattern).parts))


def _fixed(parts: Sequence[str]) -> Sequence[str]:
    magic = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return parts[:magic]


def source_digest(source: TextSource) -> str:
    """Changes when the documents that the source gives may have changed.

    Files count with their names and what `files.fingerprint` sees of them, a hub dataset with its id, subset, split
    and revision.
    """
    facts: dict[str, Any] = {"text_field": source.text_field, "max_documents": source.max_documents}
    if source.messages:
        facts["messages"] = source.messages
    if source.hub:
        facts |= {"hub": source.hub, "subset": source.subset, "split": source.split, "revision": source.revision}
    else:
        kind, named = find_files(source)
        facts |= {"format": kind, "files": {name: files.fingerprint(path) for name, path in named}}
    return files.digest(facts)
