"""Checks of a finished folder: would a stock reader load it, and is what it holds sound?"""

import dataclasses
import importlib.util
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from chopjax import paths
from chopjax.errors import UserError
from chopjax.hf import safetensors
from chopjax.hf.checkpoint import Checkpoint, open_checkpoint, read_config

TOKENIZER = "tokenizer.json"
_OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "vocab.txt")


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something to know about a folder.

    Attributes:
        severity: "error" if a reader would fail or be wrong, "warning" otherwise.
        subject: the file, tensor or config key.
        message: what is the matter, and the mend.
    """

    severity: Literal["error", "warning"]
    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.subject}: {self.message}"


def verify_folder(folder: str | Path, contents: bool = True) -> list[Finding]:
    """All findings about a folder in Hugging Face format; none means that all is well.

    Looks at shards and index, names and shapes against config.json, config.json itself (with transformers' own reader
    too, where that is installed), the tokenizer, dtypes, and NaN or infinity in every tensor.

    Args:
        contents: whether tensors are read at all.
    """
    folder = paths.make(folder)
    try:
        checkpoint = open_checkpoint(folder)
    except UserError as error:
        return [Finding("error", folder.name, str(error)), *_partial_findings(folder)]
    checks = [
        _config(checkpoint.raw_config, checkpoint),
        _stock_config(checkpoint.folder),
        _tokenizer(checkpoint.folder, checkpoint.config.vocab),
        _dtypes(checkpoint),
        _leftovers(folder),
    ]
    if contents:
        checks.append(_not_finite(checkpoint))
    return list(itertools.chain(*checks))


def _partial_findings(folder: Path) -> list[Finding]:
    """What can still be said about a folder that does not open."""
    try:
        vocab = read_config(folder).get("vocab_size")
    except UserError:
        return []
    return list(_tokenizer(folder, vocab)) if isinstance(vocab, int) and not paths.is_remote(folder) else []


def _config(raw: Mapping[str, Any], checkpoint: Checkpoint) -> Iterator[Finding]:
    config, family = checkpoint.config, checkpoint.family
    reason = family.misfit(config)
    if reason is not None:
        yield Finding("error", "config.json", f"{family.architecture} {reason}")
    if raw.get("head_dim") is None:
        yield Finding("warning", "head_dim", f"is not stated; readers will derive {config.head_dim}")
    stated = raw.get("dtype", raw.get("torch_dtype"))
    if stated is not None and stated != checkpoint.dtype:
        yield Finding("warning", "dtype", f"config.json says {stated}, most weights are {checkpoint.dtype}")
    for key in sorted(key for key in raw if key.endswith("_token_id")):
        ids = raw[key] if isinstance(raw[key], list) else [raw[key]]
        if any(isinstance(number, int) and not 0 <= number < config.vocab for number in ids):
            yield Finding("warning", key, f"{raw[key]} lies outside of the vocabulary of {config.vocab}")


def _stock_config(folder: Path) -> Iterator[Finding]:
    if importlib.util.find_spec("transformers") is None:
        return
    from transformers import AutoConfig

    try:
        read = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever it raises is the finding
        yield Finding("error", "config.json", f"transformers does not read it: {_first_line(error)}")
        return
    types = getattr(read, "layer_types", None)
    if types is not None and len(types) != read.num_hidden_layers:
        yield Finding("error", "layer_types", f"has {len(types)} entries for {read.num_hidden_layers} layers")


def _tokenizer(folder: Path, vocab: int) -> Iterator[Finding]:
    file = folder / TOKENIZER
    if not file.is_file():
        others = [name for name in _OTHER_TOKENIZERS if (folder / name).is_file()]
        if not others:
            yield Finding("warning", TOKENIZER, "the folder has no tokenizer")
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        yield Finding("error", TOKENIZER, f"does not load: {_first_line(error)}")
        return
    size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if size > vocab:
        yield Finding("error", TOKENIZER, f"has ids up to {size - 1}, the embedding has {vocab} rows")


def _dtypes(checkpoint: Checkpoint) -> Iterator[Finding]:
    odd = [name for name, entry in checkpoint.tensors.items() if entry.dtype != safetensors.DTYPES[checkpoint.dtype]]
    if odd:
        others = f"and {len(odd) - 1} more, " if len(odd) > 1 else ""
        yield Finding("warning", odd[0], f"{others}not stored as {checkpoint.dtype}, unlike the rest")


def _leftovers(folder: Path) -> Iterator[Finding]:
    index = folder / safetensors.INDEX
    if index.is_file() and (folder / safetensors.SINGLE).is_file():
        message = f"is next to {safetensors.INDEX}: transformers reads this file, others the shards; remove one of them"
        yield Finding("error", safetensors.SINGLE, message)
    if index.is_file():
        named = set(json.loads(index.read_text())["weight_map"].values())
        for file in sorted(folder.glob("model-*.safetensors")):
            if file.name not in named:
                yield Finding("warning", file.name, f"is not in {safetensors.INDEX}")


def _not_finite(checkpoint: Checkpoint) -> Iterator[Finding]:
    for name, entry in checkpoint.tensors.items():
        with safetensors.opened(entry.file) as source:
            if not all(safetensors.all_finite(block) for _, block in safetensors.read_rows(source, entry)):
                yield Finding("error", name, "holds NaN or infinity")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
