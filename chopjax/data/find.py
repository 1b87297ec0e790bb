"""Finding a source's files, and digests that notice when they change."""

import codecs
import collections
import glob
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from chopjax import files, paths
from chopjax.data.config import TextSource
from chopjax.data.formats import AS_TEXT, FORMATS, format_of, name_of
from chopjax.data.plain_text import LONGEST, PIECE
from chopjax.data.streams import read_head
from chopjax.errors import UserError

Named = list[tuple[str, pathlib.Path]]  # name relative to the source's folder, and path

JSON = {"jsonl": "json", "json": "jsonl"}  # names of each are read as the other if the format says so


def find_files(source: TextSource) -> tuple[str, Named]:
    """The format of a source and its files in sorted order.

    A stated format wins. Else names decide, and where a name tells nothing the file's first bytes.

    Returns:
        The format, and pairs of (name relative to the source's folder, path).

    Raises:
        UserError: nothing is there, a file cannot be read as text, or there are several formats and none is stated.
    """
    named = _named_files(source.path)
    if source.format:
        named = _of_format(source, named)
    if not named:
        raise UserError(f"data.sources: no {source.format or 'text'} files at {source.path}; check path and format")
    if source.format:
        return source.format, named
    groups: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
    for _, path in named:
        groups[_format(path)].append(path)
    if len(groups) > 1:
        _refuse_mixture(source, groups)
    ((kind, found),) = groups.items()
    if kind not in FORMATS:
        raise UserError(f"{found[0]}: {_why_refused(found[0])}")
    return kind, named


def described(source: TextSource) -> str:
    """One line for people: how many files are read as what, and what is left out."""
    if source.hub:
        return f"{source.label}: {source.hub}, read from the hub"
    kind, named = find_files(source)
    names = [name_of(path) for _, path in named]
    told = {name.format for name in names} == {kind}
    # Names that tell nothing are shown, so that a stray file among them is seen.
    kinds = [] if told or source.format else [[name.suffix or "no suffix" for name in names]]
    kinds.append([name.compression for name in names if name.compression])
    notes = []
    for counts in map(collections.Counter, kinds):
        alone = len(counts) == 1 and counts.total() == len(named)
        notes += [*counts] if alone else [f"{count} {name}" for name, count in counts.most_common(8)]
    if kind != "text" and not told:
        notes.append("as set by format" if source.format else "by their contents")
    if left := len(_named_files(source.path)) - len(named):
        notes.append(f"{left} of other formats left out")
    if links := _folder_links(source.path):
        notes.append(f"{links} links to folders not followed")
    line = f"{source.label}: {len(named)} file{'s'[: len(named) != 1]} read as {kind}"
    return f"{line} ({', '.join(notes)})" if notes else line


def _of_format(source: TextSource, named: Named) -> Named:
    """The files that a stated format means: of a folder those whose names tell it or tell nothing."""
    kind = source.format
    if kind == "text":
        return named
    by_name: dict[str, Named] = collections.defaultdict(list)
    for name, path in named:
        by_name[name_of(path).format].append((name, path))
    chosen = by_name[kind]
    if not chosen and not paths.make(source.path).is_dir():
        chosen = named
    chosen = chosen or by_name[JSON.get(kind, kind)]
    # A suffix of digits, as in `part.0001`, is a number and tells no format.
    chosen = chosen or [pair for pair in by_name[""] if not name_of(pair[1]).suffix.strip(".0123456789")]
    for _, path in chosen:
        if kind not in JSON and name_of(path).compression:
            raise UserError(f"{path}: a compressed {kind} file is not read; decompress it")
    return chosen


def _format(path: pathlib.Path) -> str:
    """The format of one file; a word for it that is none of `FORMATS` if it cannot be read."""
    name = name_of(path)
    if name.refused:
        return f"{'compressed ' * bool(name.format)}{name.suffix.removeprefix('.')}"
    return name.format or format_of(*read_head(path)) or "binary"


def _why_refused(path: pathlib.Path) -> str:
    if name_of(path).refused:
        return name_of(path).refused
    if read_head(path)[0][:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "UTF-16 text; convert it to UTF-8, as with iconv -f UTF-16 -t UTF-8"
    return "holds NUL bytes, so it is no text, and its name tells no format that is read; leave it out with a glob"


def _refuse_mixture(source: TextSource, groups: Mapping[str, Sequence[pathlib.Path]]) -> NoReturn:
    """Says which formats there are, and what reads one of them; each piece of advice works as it is."""
    there = ", ".join(f"{kind}: {len(found)} such as {found[0].name}" for kind, found in sorted(groups.items()))
    readable = {kind: found for kind, found in groups.items() if kind in FORMATS}
    advice = [f"set format={kind!r} to read those files alone" for kind in sorted(readable) if kind != "text"]
    if all(kind in AS_TEXT for kind in groups):
        advice.append("set format='text' to read every file as plain text")
    if readable:
        common = max(readable.items(), key=lambda pair: (len(pair[1]), pair[0] != "text"))[1]
        suffix = collections.Counter(name_of(path).suffix for path in common).most_common(1)[0][0]
        folder = f"{glob.escape(source.path.rstrip('/'))}/**/" if paths.make(source.path).is_dir() else ""
        advice += [f"use a glob, such as path={f'{folder}*{suffix}*'!r}"] if suffix else []
    last = advice.pop() if advice else "move all but one format elsewhere"
    joined = f"{', '.join(advice)}, or {last}" if advice else last
    raise UserError(f"data.sources: {source.path} holds files of several formats ({there}); {joined}")


def _named_files(path: str) -> Named:
    root = paths.make(path)
    if root.is_file():
        return [(root.name, root)]
    if root.is_dir():
        found = [(name.as_posix(), root / name) for name in _inside(root)]
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
            if not pathlib.Path(file).is_dir()
        ]
    for _, file in found:
        if not paths.is_remote(file) and not file.is_file():
            kind = "a pipe, socket or device, not a file; save its text to a file" if file.exists() else "a broken link"
            raise UserError(f"data.sources: {file} is {kind}")
    return sorted(found, key=lambda pair: pair[0])


def _inside(root: pathlib.Path) -> list[pathlib.PurePosixPath]:
    """The names of all entries below a folder that are no folders, without hidden ones."""
    if paths.is_remote(root):
        names = [pathlib.PurePosixPath(name) for name in paths.inside(root)]
    else:
        names = [
            pathlib.PurePosixPath(pathlib.Path(parent, name).relative_to(root))
            for parent, _, entries in os.walk(root, onerror=_raise)
            for name in entries
        ]
    return [name for name in names if not any(part.startswith(".") for part in name.parts)]


def _folder_links(path: str) -> int:
    """How many links below a folder lead to folders, which are not read."""
    if paths.is_remote(path) or not os.path.isdir(path):
        return 0
    return sum(os.path.islink(os.path.join(parent, name)) for parent, names, _ in os.walk(path) for name in names)


def _raise(error: OSError) -> NoReturn:
    raise UserError(f"data.sources: {error.filename} cannot be read ({error.strerror}); see to its permissions")


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
    if source.prompt:
        facts |= {"prompt": source.prompt, "completion": source.completion}
    if source.hub:
        facts |= {"hub": source.hub, "subset": source.subset, "split": source.split, "revision": source.revision}
    else:
        kind, named = find_files(source)
        facts |= {"format": kind, "files": {name: files.fingerprint(path) for name, path in named}}
        # Versions before the one that reads long files in pieces read each as one document.
        if kind == "text" and any(paths.size(path) > LONGEST for _, path in named if not name_of(path).compression):
            facts["piece"] = PIECE
    return files.digest(facts)
