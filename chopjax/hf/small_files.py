"""The small files of a model: which of them an export takes along, and which links are followed."""

import dataclasses
import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path

from chopjax import files
from chopjax.errors import UserError
from chopjax.hf.source_files import CONFIG, TEMPLATES

# Taken over from the source: the tokenizer in any form, chat templates, generation defaults, processors.
NEEDED = (
    *("tokenizer.json", "tokenizer.*.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "tokenizer.model.*", "tekken.json", "*.tiktoken"),
    *("chat_template.*", f"{TEMPLATES}/*.jinja", "generation_config.json"),
    *("processor_config.json", "preprocessor_config.json"),
)
LEGAL = ("LICENSE*", "NOTICE*", "USE_POLICY*")

# Read by transformers as JSON objects; what is broken in them would be passed over or stop a reader.
_OBJECTS = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"),
    *("chat_template.json", "processor_config.json", "preprocessor_config.json"),
)
_WRITTEN = (CONFIG, "README.md")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")


@dataclasses.dataclass(frozen=True)
class SmallFiles:
    """The small files of a folder.

    Attributes:
        copied: by name relative to the folder, what an export takes along.
        left_out: one line for each kind of file that it leaves out.
    """

    copied: dict[str, Path]
    left_out: tuple[str, ...]


def small_files(folder: str | Path) -> SmallFiles:
    """Lists the small files of a folder on this machine.

    Links are followed inside the folder, and from a snapshot of the Hugging Face cache to the files that it keeps. A
    licence behind another link is left out: what a link from outside of a repository leads to may not be meant for
    publication.

    Raises:
        UserError: a file that a reader needs is such a link, or is not a JSON object where it must be one.
    """
    folder = Path(folder)
    roots = _roots(folder)
    _refuse_link(folder / CONFIG, roots)
    if not (folder / TEMPLATES).is_dir():
        _refuse_link(folder / TEMPLATES, roots)
    copied: dict[str, Path] = {}
    for file in _matching(folder, NEEDED):
        _refuse_link(file, roots)
        if file.is_file():
            copied[file.relative_to(folder).as_posix()] = file
    left_out = []
    for file in _matching(folder, LEGAL):
        if _leads_out(file, roots):
            left_out.append(f"{file.name} is not copied: it is a link to {os.path.realpath(file)}")
        elif file.is_file():
            copied[file.name] = file
    for name in _OBJECTS:
        files.read_object(folder / name)
    others = _others(folder, copied, left_out)
    return SmallFiles(copied, (*left_out, *([f"not copied: {', '.join(others)}"] if others else [])))


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    """Files and links, also those to nothing, which `glob` passes over."""
    names = sorted(os.listdir(folder))
    if (folder / TEMPLATES).is_dir():
        names += [f"{TEMPLATES}/{name}" for name in sorted(os.listdir(folder / TEMPLATES))]
    for name in names:
        if any(name.count("/") == one.count("/") and fnmatch.fnmatchcase(name, one) for one in patterns):
            yield folder / name


def _others(folder: Path, copied: dict[str, Path], left_out: list[str]) -> list[str]:
    """Files and folders that have no part in an export, for a person to know; not weights, and nothing hidden."""
    named = {name.partition("/")[0] for name in copied} | {line.partition(" ")[0] for line in left_out}
    return sorted(
        file.name
        for file in folder.iterdir()
        if file.name not in named and file.name not in _WRITTEN
        if not file.name.startswith(".") and not file.name.endswith(_WEIGHTS)
    )


def _roots(folder: Path) -> tuple[str, ...]:
    """Where links may lead: the folder itself, and the contents of a repository in the Hugging Face cache."""
    real = Path(os.path.realpath(folder))
    if real.parent.name != "snapshots":
        return (str(real),)
    repository = real.parent.parent
    # The cache may keep large files once for all repositories.
    return tuple(map(os.path.realpath, (real, repository / "blobs", repository.parent / "blobs")))


def _leads_out(file: Path, roots: tuple[str, ...]) -> bool:
    real = Path(os.path.realpath(file))
    return not real.exists() or not any(real.is_relative_to(root) for root in roots)


def _refuse_link(file: Path, roots: tuple[str, ...]) -> None:
    if os.path.lexists(file) and _leads_out(file, roots):
        target = os.path.realpath(file)
        there = "outside of the folder" if os.path.exists(target) else "where no file is"
        raise UserError(f"{file}: a link to {target}, {there}; put the file itself in the place of the link")
