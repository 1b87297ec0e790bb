"""Opening a checkpoint: config and headers only, everything checked before anything slow. Imports without jax."""

import contextlib
import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from chopjax import files
from chopjax.errors import UserError, short
from chopjax.hf import safetensors, source_files
from chopjax.hf.families import Family, Tensor, family_of
from chopjax.hf.safetensors import INDEX, SINGLE, Entry
from chopjax.hf.source_files import CONFIG, read_config
from chopjax.hf.weights import WeightFiles, read_headers, weight_files
from chopjax.models.config import ModelConfig
from chopjax.unchanged import Version, unchanged, versions

__all__ = ["CONFIG", "Checkpoint", "open_checkpoint", "open_config", "read_config"]

# Small files that decide what a model computes or what is copied from it; a note that changes matters to nobody.
_WATCHED = (CONFIG, source_files.GENERATION_CONFIG, "tokenizer*", "*token*.json", "vocab.*", "merges.txt", "*.model")
_TEMPLATE_FILES = ("chat_template*", f"{source_files.TEMPLATES}/*")
# Dtypes of the format that only quantized checkpoints use.
_QUANTIZED = re.compile(r"F8_.*|F4|F6_.*|I8|U8")
# Names by which quantized checkpoints store what takes the place of a weight, or its scale.
_PACKED = re.compile(r".*\.(qweight|weight_packed|weight_scale|weight_scale_inv|absmax|quant_map|quant_state\..*)")
_DEQUANTIZE = (
    "use the checkpoint that it was quantized from, or dequantize it to bfloat16 first "
    "(in transformers: model.dequantize(), then save_pretrained)"
)


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
        versions: of the files that were read or will be, as they were before.
    """

    source: str
    folder: Path
    raw_config: Mapping[str, Any]
    family: Family
    config: ModelConfig
    dtype: str
    tensors: Mapping[str, Entry]
    versions: Mapping[Path, Version] = dataclasses.field(default_factory=dict)

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

    @property
    def fingerprint(self) -> str:
        """A digest of its files; see `files.fingerprint`.

        Raises:
            UserError: a file changed since the checkpoint was opened.
        """
        with self.unchanged():
            found = files.fingerprint(self.place, nested=False)
        if (self.place / INDEX).is_file() and (self.place / SINGLE).is_file():
            # Runs of chopjax before this was settled read the shards of such a folder.
            return files.digest({"files": found, "weights": SINGLE})
        return found

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """For a block that reads its files: what was opened and what is read must be of one version.

        Raises:
            UserError: a file changed since the checkpoint was opened; names it.
        """
        with unchanged(self.versions):
            yield

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
        UserError: no such folder or hub id, unsupported architecture, missing, damaged or truncated shards, unknown or
            missing tensors, wrong shapes, a dtype that is not read, or files that would change the model and are not
            read.
    """
    folder, place = source_files.locate(source)
    recorded = versions(file for name in (*_WATCHED, *_TEMPLATE_FILES) for file in folder.glob(name))
    raw, family, config = _read_config(folder, place)
    if source_files.is_hub_id(source):
        source_files.download_weights(str(source), place)
    weights = weight_files(place)
    recorded |= versions(weights.paths)
    entries = read_headers(weights)
    _refuse_quantization(place / CONFIG, raw, entries)
    tensors = _parameters(weights, family, config, entries)
    weight: Counter[np.dtype] = Counter()
    for entry in tensors.values():
        weight[entry.dtype or np.dtype(np.void)] += entry.nbytes
    dtype = safetensors.dtype_name(weight.most_common(1)[0][0])
    return Checkpoint(str(source), folder, raw, family, config, dtype, tensors, recorded)


def open_config(source: str | Path) -> tuple[Path, dict[str, Any], Family, ModelConfig]:
    """What a folder or a hub id says of itself without its weights, which need not be there.

    Returns:
        the folder on this machine, its config.json, the family, and what the decoder needs to know.

    Raises:
        UserError: no such folder or hub id, an unsupported architecture, or a quantized checkpoint.
    """
    folder, place = source_files.locate(source)
    raw, family, config = _read_config(folder, place)
    if raw.get("quantization_config"):
        raise UserError(
            f"{place / CONFIG}: quantization_config is set; remove it if the weights are not quantized, "
            f"otherwise {_DEQUANTIZE}"
        )
    return folder, raw, family, config


def _read_config(folder: Path, place: Path) -> tuple[dict[str, Any], Family, ModelConfig]:
    source_files.check_small_files(folder)
    raw = read_config(folder)
    try:
        family = family_of(raw)
        return raw, family, family.config_from_hf(raw)
    except UserError as error:  # a run may read several models, each with a config.json
        raise UserError(str(error).replace(CONFIG, str(place / CONFIG), 1)) from None


def _refuse_quantization(file: Path, raw: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
    for name, entry in entries.items():
        if _QUANTIZED.fullmatch(entry.code) or _PACKED.fullmatch(name):
            raise UserError(
                f"{entry.file}: tensor {short(name)}, stored as {entry.code}, belongs to a quantized checkpoint, "
                f"which is not read; {_DEQUANTIZE}"
            )
    if raw.get("quantization_config"):
        raise UserError(
            f"{file}: quantization_config is set, so transformers would quantize these weights, which are not "
            f"quantized; remove quantization_config from that file to use them as they are stored"
        )


def _parameters(
    files: WeightFiles, family: Family, config: ModelConfig, found: Mapping[str, Entry]
) -> dict[str, Entry]:
    folder = files.folder
    _refuse_other_depth(folder, family, config, found)
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
            shape = short(entry.shape)
            raise UserError(f"{entry.file}: tensor {name} has shape {shape}, config.json calls for {tensor.shape}")
    for name, entry in found.items():
        if name in wanted or family.is_useless(name):
            continue
        if config.tied and name == family.rules["unembed/kernel"].name:
            _check_tied(entry, found[family.rules["embed/table"].name])
            continue
        raise UserError(
            f"{entry.file}: unknown tensor {short(name)}; "
            f"{family.architecture} with this config.json has no such parameter"
        )
    return {name: found[name] for name in wanted}


def _refuse_other_depth(folder: Path, family: Family, config: ModelConfig, found: Mapping[str, Entry]) -> None:
    """Compares the number of layers before anything is made for each of them."""
    layers = family.layers_of(found)
    if layers != config.layers:
        raise UserError(
            f"{folder}: the files hold {layers} layers, but config.json says num_hidden_layers {config.layers}; "
            f"use the config.json and the files of one model"
        )


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
