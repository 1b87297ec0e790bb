"""Small tokenizers of every kind whose vocabulary can be trimmed, as `tokenizer.json` dicts."""

import json
from typing import Any

import tokenizers
from data.conftest import SENTENCES
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from chopjax.hf.vocabulary import BYTES

SPECIALS = ["<unk>", "<s>", "</s>"]
OFTEN = SENTENCES * 3


def byte_level(**model: Any) -> dict[str, Any]:
    """A byte-level BPE of 330 tokens in the style of GPT-2, with an added token beyond the model's."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(OFTEN, trainer)
    core.add_special_tokens(["<|turn|>"])
    return _with_model(core, **model)


def sentencepiece_bpe(byte_fallback: bool = True) -> dict[str, Any]:
    """A BPE of pieces in the style of Llama 2: a space is U+2581, and unknown characters are bytes, or unknown."""
    core = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    core.decoder = _piece_decoder()
    own = [*SPECIALS, *BYTES] if byte_fallback else SPECIALS
    core.train_from_iterator(
        OFTEN, trainers.BpeTrainer(vocab_size=len(own) + 120, special_tokens=own, show_progress=False)
    )
    return _without_added_bytes(_with_model(core, byte_fallback=byte_fallback))


def unigram(byte_fallback: bool = True) -> dict[str, Any]:
    """A Unigram of pieces in the style of T5, with bytes or without."""
    core = tokenizers.Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = _piece_decoder()
    trainer = trainers.UnigramTrainer(
        vocab_size=140, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False, max_piece_length=8
    )
    core.train_from_iterator(OFTEN, trainer)
    raw = _with_model(core, byte_fallback=byte_fallback)
    if byte_fallback:
        raw["model"]["vocab"] += [[byte, -30.0] for byte in BYTES]
    return raw


KINDS = {
    "byte-level": byte_level,
    "taken whole": lambda: byte_level(ignore_merges=True),
    "pieces with bytes": sentencepiece_bpe,
    "pieces without bytes": lambda: sentencepiece_bpe(byte_fallback=False),
    "unigram with bytes": unigram,
    "unigram without bytes": lambda: unigram(byte_fallback=False),
}


def _piece_decoder() -> decoders.Decoder:
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return decoders.Sequence(parts)


def _with_model(core: tokenizers.Tokenizer, **changes: Any) -> dict[str, Any]:
    raw = json.loads(core.to_str())
    return {**raw, "model": {**raw["model"], **changes}}


def _without_added_bytes(raw: dict[str, Any]) -> dict[str, Any]:
    return {**raw, "added_tokens": [token for token in raw["added_tokens"] if token["content"] not in BYTES]}
