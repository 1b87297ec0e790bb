"""Checks of a finished folder: would a stock reader load it, and is what it holds sound?"""

import importlib.util
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chopjax import files, paths
from chopjax.errors import UserError
from chopjax.hf import safetensors, stock
from chopjax.hf.checkpoint import Checkpoint, open_checkpoint
from chopjax.hf.findings import Finding, first_line
from chopjax.hf.small_files import small_files
from chopjax.hf.source_files import CONFIG, GENERATION_CONFIG, read_config
from chopjax.hf.token_ids import named_in, padding_beyond

TOKENIZER = "tokenizer.json"
_OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "vocab.txt")


def verify_folder(folder: str | Path, contents: bool = True) -> list[Finding]:
    """All findings about a folder in Hugging Face format; none means that all is well.

    Looks at shards and index, names and shapes against config.json, the small files (also as transformers reads them,
    and builds the model where PyTorch is installed), dtypes, and NaN or infinity in every tensor.

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
        _small_files(checkpoint),
        _stock(checkpoint.folder, checkpoint.config.vocab),
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
    if (number := padding_beyond(raw, config.vocab)) is not None:
        yield Finding(
            "error",
            "pad_token_id",
            f"is {number}, but the vocabulary has {config.vocab} rows, so stock transformers does not load the model; "
            f"set it to null in config.json, or to an id below {config.vocab}",
        )


def _stock(folder: Path, vocab: int) -> list[Finding]:
    return [] if importlib.util.find_spec("transformers") is None else stock.findings(folder, vocab)


def _small_files(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Broken files and links that lead out of the folder; ids in them that the vocabulary has not."""
    try:
        small_files(checkpoint.folder)
        generation = files.read_object(checkpoint.folder / GENERATION_CONFIG) or {}
    except UserError as error:
        yield Finding("error", checkpoint.folder.name, str(error))
        return
    vocab = checkpoint.config.vocab
    for file, found in ((CONFIG, checkpoint.raw_config), (GENERATION_CONFIG, generation)):
        for where, number in named_in(found, file):
            if not 0 <= number < vocab:
                yield Finding("warning", where, f"{number} lies outside of the vocabulary of {vocab}")


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
        yield Finding("error", TOKENIZER, f"does not load: {first_line(error)}")
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
