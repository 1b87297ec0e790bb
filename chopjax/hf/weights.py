"""Which files of a folder hold its weights: those that transformers reads. Without jax."""

import dataclasses
import glob
import json
import re
from collections.abc import Mapping
from pathlib import Path

from chopjax import paths
from chopjax.errors import UserError, short
from chopjax.hf.safetensors import INDEX, SINGLE, Entry, read_header

# Suffixes of files that hold weights, in any format.
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
# transformers 5 takes a folder with such a file for a distributed checkpoint and reads nothing else.
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """The files with a folder's weights.

    Attributes:
        folder: where they are.
        shards: their names: `model.safetensors`, or those in the index.
        shard_of: tensor name → its shard; None without an index.
    """

    folder: Path
    shards: tuple[str, ...]
    shard_of: Mapping[str, str] | None

    @property
    def paths(self) -> list[Path]:
        """The files and the index, if there is one."""
        return [self.folder / name for name in (*self.shards, *([INDEX] if self.shard_of is not None else []))]


def weight_files(folder: Path) -> WeightFiles:
    """`model.safetensors`, or else the shards in the index: the order of transformers.

    Raises:
        UserError: there is neither, the index is damaged or names files elsewhere, a shard is missing, or the folder
            also holds a distributed checkpoint.
    """
    names = paths.inside(folder, nested=False)
    for name in names:
        if _DISTRIBUTED.fullmatch(name):
            raise UserError(
                f"{folder / name}: part of a distributed checkpoint, which is not read, and which transformers reads "
                f"instead of {SINGLE}; move those files away, or save the model with save_pretrained"
            )
    if SINGLE in names:
        return WeightFiles(folder, (SINGLE,), None)
    if INDEX not in names:
        raise UserError(_nothing_to_read(folder, names))
    shard_of = read_index(folder / INDEX)
    shards = tuple(sorted(set(shard_of.values())))
    for shard in shards:
        if shard not in names:
            raise UserError(f"{folder / short(shard)}: missing shard, named in {INDEX}; download it again")
    return WeightFiles(folder, shards, shard_of)


def read_index(index: Path) -> dict[str, str]:
    """Tensor name → file name of an index.

    Raises:
        UserError: it is damaged, or names a file that is not in its folder.
    """
    try:
        shard_of: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        known = bool(shard_of) and all(isinstance(shard, str) for shard in shard_of.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        known = False
    if not known:
        raise UserError(f"{index}: not an index of safetensors shards; download it again")
    for shard in sorted(set(shard_of.values())):
        if Path(shard).name != shard:
            raise UserError(f"{index}: shard {short(shard)} lies outside of the folder")
    return shard_of


def read_headers(files: WeightFiles) -> dict[str, Entry]:
    """All tensors of the files; reads headers only.

    Raises:
        UserError: a damaged or truncated file, a tensor in two files, or not in the file that the index says.
    """
    found: dict[str, Entry] = {}
    for shard in files.shards:
        for name, entry in read_header(files.folder / shard).items():
            if name in found:
                raise UserError(f"{entry.file}: tensor {short(name)} is also in {found[name].file.name}")
            found[name] = entry
    for name, shard in (files.shard_of or {}).items():
        if name not in found or found[name].file.name != shard:
            raise UserError(f"{files.folder / shard}: tensor {short(name)} is not in it, though {INDEX} says so")
    return found


def pattern(name: str) -> str:
    """A pattern that matches this file name only."""
    return glob.escape(name)


def _nothing_to_read(folder: Path, names: Mapping[str, int]) -> str:
    others = sorted(name for name in names if name.endswith(SUFFIXES))
    suffixes = sorted({Path(name).suffix for name in others})
    if others and ".safetensors" not in suffixes:
        return f"{folder}: only {', '.join(suffixes)} weights, which are not read; convert them to safetensors"
    hint = f"; {others[0]} is read only if {INDEX} names it" if others else ""
    return f"{folder}: neither {SINGLE} nor {INDEX}{hint}"
