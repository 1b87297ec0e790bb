"""Opening a checkpoint: config and headers only, everything checked before anything slow. Imports without jax."""

import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from chopjax import paths
from chopjax.errors import UserError
from chopjax.hf import safetensors
from chopjax.hf.families import Family, Tensor, family_of
from chopjax.hf.safetensors import Entry
from chopjax.models.config import ModelConfig

CONFIG = "config.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# The tokenizer in any form, the chat template, generation defaults, licence and notes; what a model is besides weights.
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
_WEIGHTS = ["model.safetensors", "model-*.safetensors"]
# Of a folder in a store, what is copied to this machine: all but weights, which are read where they lie.
_SMALL_BYTES = 128 << 20
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A readable Hugging Face folder.

    Attributes:
        source: what the user named: a path, or a hub id with its revision.
        folder: where its small files lie (config, tokenizer); of a folder in a store, copies of them.
        raw_config: config.json as it is.
        family: its table.
        config: what the decoder needs to know.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`: the dtype of most of its bytes.
        tensors: tensor name → place in the files; those that hold parameters only.
    """

    source: str
    folder: Path
    raw_config: Mapping[str, Any]
    family: Family
    config: ModelConfig
    dtype: str
    tensors: Mapping[str, Entry]

    @functools.cached_property
    def leaves(self) -> Mapping[str, list[Tensor]]:
        """Flat tree path → the tensors that make it up, in layer order."""
        found: dict[str, list[Tensor]] = {}
        for tensor in self.family.tensors(self.config):
            found.setdefault(tensor.path, []).append(tensor)
        return found

    @property
    def place(self) -> Path:
        """Where its weights lie, on a disk or in a store."""
        return next(iter(self.tensors.values())).file.parent

    def leaf_dtype(self, path: str) -> np.dtype:
        """The dtype of a whole leaf: as stored, or float32 (which holds all three exactly) if its layers differ."""
        stored = {self.tensors[tensor.name].dtype for tensor in self.leaves[path]}
        found = stored.pop() if len(stored) == 1 else np.dtype(np.float32)
        assert found is not None  # opening refuses other dtypes
        return found


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Opens a folder, on a disk or in a store, or a hub id (`owner/name`, `owner/name@revision`), which is downloaded.

    Reads config.json and the headers of all shards, and compares every name and shape with what the config calls for.
    Weights are read only where a tied model also stores an output head, to see that it equals the embedding.

    Raises:
        UserError: no such folder or hub id, unsupported architecture, missing or truncated shards, unknown or missing
            tensors, wrong shapes, a dtype that is not read.
    """
    folder, raw, family, config = open_config(source)
    weights = paths.make(source)
    if not paths.is_remote(weights) and not weights.is_dir():
        weights = folder = _download(str(source), _SMALL_FILES + _WEIGHTS)
    tensors = _parameters(weights, family, config, safetensors.read_folder(weights))
    weight: Counter[np.dtype] = Counter()
    for entry in tensors.values():
        weight[entry.dtype or np.dtype(np.void)] += entry.nbytes
    dtype = safetensors.dtype_name(weight.most_common(1)[0][0])
    return Checkpoint(str(source), folder, raw, family, config, dtype, tensors)


def open_config(source: str | Path) -> tuple[Path, dict[str, Any], Family, ModelConfig]:
    """What a folder or a hub id says of itself without its weights, which need not be there.

    Returns:
        the folder on this machine, its config.json, the family, and what the decoder needs to know.

    Raises:
        UserError: no such folder or hub id, or an unsupported architecture.
    """
    folder = paths.make(source)
    if paths.is_remote(folder):
        folder = _small_files_here(folder)
    elif not folder.is_dir():
        folder = _download(str(source), _SMALL_FILES)
    raw = read_config(folder)
    family = family_of(raw)
    return folder, raw, family, family.config_from_hf(raw)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder.

    Raises:
        UserError: it is missing or not a JSON object.
    """
    file = folder / CONFIG
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: missing; name a folder in Hugging Face format or a hub id") from None
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file}: not a JSON object")
    return raw


def _parameters(folder: Path, family: Family, config: ModelConfig, found: Mapping[str, Entry]) -> dict[str, Entry]:
    wanted = {tensor.name: tensor for tensor in family.tensors(config)}
    for name, tensor in wanted.items():
        entry = found.get(name)
        if entry is None:
            hint = "; is tie_word_embeddings meant to be true?" if tensor.path == "unembed/kernel" else ""
            raise UserError(f"{folder}: tensor {name} is missing, which config.json calls for{hint}")
        if entry.dtype is None:
            raise UserError(
                f"{entry.file}: tensor {name} is stored as {entry.code}, which is not read; "
                f"convert the checkpoint to float32, bfloat16 or float16"
            )
        if entry.shape != tensor.shape:
            raise UserError(
                f"{entry.file}: tensor {name} has shape {entry.shape}, config.json calls for {tensor.shape}"
            )
    for name, entry in found.items():
        if name in wanted or family.is_useless(name):
            continue
        if config.tied and name == family.rules["unembed/kernel"].name:
            _check_tied(entry, found[family.rules["embed/table"].name])
            continue
        raise UserError(
            f"{entry.file}: unknown tensor {name}; {family.architecture} with this config.json has no such parameter"
        )
    return {name: found[name] for name in wanted}


def _check_tied(head: Entry, table: Entry) -> None:
    if (head.shape, head.code) != (table.shape, table.code):
        same = False
    else:
        with safetensors.opened(head.file) as one, safetensors.opened(table.file) as two:
            blocks = zip(safetensors.read_rows(one, head), safetensors.read_rows(two, table), strict=True)
            same = all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for (_, a), (_, b) in blocks)
    if not same:
        raise UserError(
            f"{head.file}: {head.name} differs from {table.name}, but config.json says tie_word_embeddings true; "
            f"set it to false to keep both, or remove {head.name} to keep the embedding only"
        )


def _small_files_here(place: Path) -> Path:
    paths.reach(place, "source")
    found = paths.inside(place, nested=False)
    if CONFIG not in found:
        raise UserError(f"{place / CONFIG}: missing; name a folder in Hugging Face format or a hub id")
    small = [name for name in found if found[name] <= _SMALL_BYTES and not name.endswith(_WEIGHT_SUFFIXES)]
    return paths.folder_here(place, small)


def _download(source: str, patterns: list[str]) -> Path:
    if not _HUB_ID.fullmatch(source) or source.startswith("."):
        raise UserError(f"{source}: no such folder, and not a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    name, _, revision = source.partition("@")
    try:
        # Files of sub-folders are other formats of the same weights.
        found = snapshot_download(name, revision=revision or None, allow_patterns=patterns, ignore_patterns=["*/*"])
    except Exception as error:  # the client raises many kinds, all of them "could not get it"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: no such folder, and the hub did not give it ({reason})") from error
    return Path(found)
