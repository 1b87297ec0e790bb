"""The small files of a source: where they come from, and the checks that need no weights. Without jax.

A source is a folder on a disk, a folder in a store, or a hub id.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chopjax import files, paths
from chopjax.errors import UserError, short
from chopjax.hf.safetensors import INDEX, SINGLE
from chopjax.hf.weights import SUFFIXES, pattern, read_index

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
ADAPTER = "adapter_config.json"
# Where transformers keeps the chat templates besides the default one.
TEMPLATES = "additional_chat_templates"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# Of a repository on the hub: config, tokenizer in any form, chat template, generation defaults, notes.
_HUB_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja")
# Of a folder in a store, the larger files are not copied to this machine.
_SMALL_BYTES = 128 << 20


def locate(source: str | Path) -> tuple[Path, Path]:
    """The folder on this machine with the source's small files, and the folder with its weights.

    A store's small files are copied. A repository's small files are downloaded; `download_weights` adds the weights.

    Raises:
        UserError: no such folder or hub id.
    """
    place = paths.make(source)
    if paths.is_remote(place):
        return _copied(place), place
    if place.is_dir():
        return place, place
    folder = _small_from_hub(str(source))
    return folder, folder


def is_hub_id(source: str | Path) -> bool:
    """Whether a source that opened is a hub id: neither in a store nor a folder."""
    place = paths.make(source)
    return not paths.is_remote(place) and not place.is_dir()


def download_weights(source: str, snapshot: Path) -> None:
    """Adds the weights that `weights.weight_files` will choose to what `locate` downloaded, of the same commit.

    Raises:
        UserError: the hub did not give them, or the index is damaged.
    """
    _snapshot(source, snapshot.name, [SINGLE])
    if not (snapshot / SINGLE).is_file() and (snapshot / INDEX).is_file():
        shards = sorted(set(read_index(snapshot / INDEX).values()))
        _snapshot(source, snapshot.name, [pattern(shard) for shard in shards])


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder.

    Raises:
        UserError: it is missing or not a JSON object.
    """
    file = folder / CONFIG
    raw = _read_object(file)
    if raw is None:
        raise UserError(f"{file}: missing; name a folder in Hugging Face format or a hub id")
    return raw


def check_small_files(folder: Path) -> None:
    """Refuses files that change the model and are not read, or that would be passed on broken.

    Raises:
        UserError: the folder holds an adapter, a config is damaged, or its token ids are no numbers.
    """
    if (folder / ADAPTER).exists():
        keep = f", or move {ADAPTER} out of the folder to use the model without it"
        raise UserError(
            f"{folder / ADAPTER}: transformers applies this adapter, chopjax does not; "
            f"merge it into its model (in peft: merge_and_unload(), then save_pretrained to another folder)"
            f"{keep if (folder / CONFIG).exists() else ''}"
        )
    for file in (folder / CONFIG, folder / GENERATION_CONFIG):
        for key, value in (_read_object(file) or {}).items():
            ids = value if isinstance(value, list) else [value]
            if key.endswith("_token_id") and not all(number is None or type(number) is int for number in ids):
                raise UserError(f"{file}: {short(key)} must be a token id or a list of them, found {value!r:.120}")


def _read_object(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    if not file.is_file():  # a folder, or a pipe that would be waited for
        raise UserError(f"{file}: not a file; replace it by the file of that name from the model's repository")
    try:
        return files.read_object(file)
    except UserError as error:
        raise UserError(f"{error}; download it again") from None


def _copied(place: Path) -> Path:
    paths.reach(place, "source")
    found = paths.inside(place, nested=False)
    if CONFIG not in found and ADAPTER not in found:
        raise UserError(f"{place / CONFIG}: missing; name a folder in Hugging Face format or a hub id")
    found |= {f"{TEMPLATES}/{name}": size for name, size in paths.inside(place / TEMPLATES, nested=False).items()}
    return paths.folder_here(
        place, [name for name, size in found.items() if size <= _SMALL_BYTES and not name.endswith(SUFFIXES)]
    )


def _small_from_hub(source: str) -> Path:
    if not _HUB_ID.fullmatch(source) or source.startswith("."):
        raise UserError(f"{source}: no such folder, and not a hub id (owner/name)")
    # Files of other sub-folders are other formats of the same weights.
    snapshot = _snapshot(source, source.partition("@")[2], _HUB_PATTERNS, ["*/*"])
    return _snapshot(source, snapshot.name, [f"{TEMPLATES}/*.jinja"])


def _snapshot(source: str, revision: str, patterns: Iterable[str], ignored: Iterable[str] = ()) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                source.partition("@")[0],
                revision=revision or None,
                allow_patterns=list(patterns),
                ignore_patterns=list(ignored),
            )
        )
    except Exception as error:  # the client raises many kinds, all of them "could not get it"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: no such folder, and the hub did not give it ({reason})") from error
