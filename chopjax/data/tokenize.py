"""A tokenizer from a Hugging Face folder: text to token ids, and what begins and ends a document."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int, Int32

from chopjax import files
from chopjax.data.config import DataConfig
from chopjax.data.pieces import convert
from chopjax.data.special import add_tokens, content_of, special_settings
from chopjax.errors import UserError

Encode = Callable[[Sequence[str]], list[list[int]]]
Offsets = Int[np.ndarray, "tokens 2"]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to ids, without any special token of its own accord.

    Attributes:
        encode: texts to lists of ids. Special tokens that are spelled out in a text are read as such, as
            `transformers` does.
        encode_offsets: texts to pairs of the same ids, and the characters that each stands for: the first, and one
            past the last.
        decode: ids to text, special tokens spelled out.
        vocab: one more than the highest id.
        digest: of the tokens, their ids and the merges; equal digests mean that ids have the same meaning.
        splitting: of how text is normalised and split before that; rows depend on it, the meaning of ids does not.
        bos: id of the token that begins a document, None where there is none.
        eos: id of the token that ends one.
        adds_bos: whether the tokenizer itself begins a sequence with BOS, which tells what the model was trained on.
        token_id: id of a token by its spelling, None where there is none.
        spelling: of a token by its id, None where there is none.
        special: spellings of the special tokens, EOS with them.
    """

    encode: Encode
    encode_offsets: Callable[[Sequence[str]], list[tuple[list[int], Offsets]]]
    decode: Callable[[Sequence[int]], str]
    vocab: int
    digest: str
    splitting: str
    bos: int | None
    eos: int | None
    adds_bos: bool
    token_id: Callable[[str], int | None]
    spelling: Callable[[int], str | None]
    special: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Ids put before and after each document; None for nothing."""

    before: int | None
    after: int | None


def load_tokenizer(folder: str | pathlib.Path) -> Tokenizer:
    """Reads `tokenizer.json` with `tokenizers`, or else whatever `transformers.AutoTokenizer` can read.

    Raises:
        UserError: neither can read the folder; nothing in it is ever executed.
    """
    folder = pathlib.Path(folder)
    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
            with _no_panic(file):
                core = tokenizers.Tokenizer.from_file(str(file))
        except UserError:
            raise
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f"{file}: not a tokenizer that `tokenizers` can read ({_short(error)})") from error
        add_tokens(core, folder)
    else:
        core = convert(folder)
        raw = json.loads(core.to_str())
    return _from_core(core, raw, folder)


def _from_core(core: tokenizers.Tokenizer, raw: dict[str, Any], folder: pathlib.Path) -> Tokenizer:
    # A saved tokenizer may cut or pad every text to some length; rows need the whole text and nothing else.
    core.no_truncation()
    core.no_padding()
    settings, file = special_settings(folder), folder / "tokenizer.json"
    bos = _special_id("bos_token", core, settings, folder)
    eos = _special_id("eos_token", core, settings, folder)
    tokens = core.get_vocab(with_added_tokens=True)
    if not tokens:
        raise UserError(f"{file}: the vocabulary is empty")
    highest = max(tokens, key=tokens.__getitem__)
    if tokens[highest] >= 16 * len(tokens) + (1 << 16):  # the library takes time and memory for each id in between
        raise UserError(
            f"{file}: token {highest[:40]!r} has id {tokens[highest]}, of {len(tokens)} tokens; correct the id"
        )

    def encode(texts: Sequence[str]) -> list[list[int]]:
        with _no_panic(file):
            return [encoding.ids for encoding in core.encode_batch_fast(list(texts), add_special_tokens=False)]

    @functools.cache
    def untrimmed() -> tokenizers.Tokenizer:
        # A post-processor may take white space out of the characters that a token stands for.
        copy = tokenizers.Tokenizer.from_str(core.to_str())
        copy.post_processor = tokenizers.processors.Sequence([])
        return copy

    def encode_offsets(texts: Sequence[str]) -> list[tuple[list[int], Offsets]]:
        with _no_panic(file):
            found = untrimmed().encode_batch(list(texts), add_special_tokens=False)
        return [(one.ids, np.array(one.offsets, np.int64).reshape(-1, 2)) for one in found]

    model = raw.get("model", {})
    special = {token.content for token in core.get_added_tokens_decoder().values() if token.special}
    spelled_eos = None if eos is None else core.id_to_token(eos)
    return Tokenizer(
        encode=encode,
        encode_offsets=encode_offsets,
        decode=lambda ids: core.decode(list(ids), skip_special_tokens=False),
        vocab=max(tokens.values()) + 1,
        digest=files.digest({"tokens": tokens, "merges": _merges(model), "scores": _scores(model)}),
        splitting=files.digest({key: raw.get(key) for key in ("normalizer", "pre_tokenizer")}),
        bos=bos,
        eos=eos,
        adds_bos=_adds_bos(core, bos, settings, file),
        token_id=core.token_to_id,
        spelling=core.id_to_token,
        special=frozenset(special | ({spelled_eos} if spelled_eos else set())),
    )


def _merges(model: dict[str, Any]) -> list[str]:
    """Merges as "left right", which tokenizer files write either so or as pairs."""
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]


def _scores(model: dict[str, Any]) -> list[Any]:
    """The log probabilities of a Unigram vocabulary, which decide how text is cut."""
    vocab = model.get("vocab")
    return vocab if isinstance(vocab, list) else []


def _special_id(key: str, core: tokenizers.Tokenizer, settings: dict[str, Any], folder: pathlib.Path) -> int | None:
    """The id of `bos_token` or `eos_token`: from the tokenizer's settings, or else the model's `config.json`."""
    if key in settings:
        text = content_of(settings[key])
        if text is None:
            return None
        found = core.token_to_id(text) if isinstance(text, str) else None
        if found is None:
            raise UserError(f"{folder / 'tokenizer_config.json'}: {key} {text!r} is not in the vocabulary")
        return found
    value = (files.read_object(folder / "config.json") or {}).get(f"{key}_id")
    first = (value or [None])[0] if isinstance(value, list) else value
    if first is not None and (type(first) is not int or first < 0):
        raise UserError(f"{folder / 'config.json'}: {key}_id is {value!r}; it must be an id, or null for none")
    return first


def _adds_bos(core: tokenizers.Tokenizer, bos: int | None, settings: dict[str, Any], file: pathlib.Path) -> bool:
    if bos is None:
        return False
    if isinstance(settings.get("add_bos_token"), bool):
        return settings["add_bos_token"]
    with _no_panic(file):
        return core.encode("a", add_special_tokens=True).ids[:1] == [bos]


@contextlib.contextmanager
def _no_panic(file: pathlib.Path) -> Iterator[None]:
    """Turns a panic of the library, such as a regular expression without end, into bad input."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # which is no `Exception`, and can be imported from nowhere
            raise
        raise UserError(f"{file}: `tokenizers` fails with it ({_short(error)}); correct the file") from error


def _short(error: BaseException) -> str:
    """The first line of an error; some repeat the whole file."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else f"{line[:200]}..."


def document_bounds(tokenizer: Tokenizer, config: DataConfig) -> Bounds:
    """What to put around each document: BOS where the tokenizer adds one, EOS where it has one, unless told otherwise.

    Raises:
        UserError: `always` is asked of a tokenizer without such a token, or `eos_token` is not in its vocabulary.
    """
    eos = tokenizer.eos
    if config.eos_token:
        eos = tokenizer.token_id(config.eos_token)
        if eos is None:
            raise UserError(f"data.eos_token {config.eos_token!r} is not in the tokenizer's vocabulary")
    if config.add_bos == "always" and tokenizer.bos is None:
        raise UserError("data.add_bos is 'always', but the tokenizer names no bos_token; use 'auto'")
    if config.add_eos == "always" and eos is None:
        raise UserError("data.add_eos is 'always', but the tokenizer names no eos_token; use 'auto' or set eos_token")
    begins = config.add_bos == "always" or (config.add_bos == "auto" and tokenizer.adds_bos)
    return Bounds(tokenizer.bos if begins else None, eos if config.add_eos != "never" else None)


def encode_documents(tokenizer: Tokenizer, bounds: Bounds, texts: Sequence[str]) -> list[Int32[np.ndarray, "tokens"]]:
    """Token ids of each text with the document's bounds around them, int32."""
    before = [] if bounds.before is None else [bounds.before]
    after = [] if bounds.after is None else [bounds.after]
    return [np.array(before + ids + after, np.int32) for ids in tokenizer.encode(texts)]


def covered(offsets: Offsets, spans: Iterable[tuple[int, int]]) -> Bool[np.ndarray, "tokens"]:
    """Which tokens stand for any character of the spans, or for none but within one.

    Args:
        offsets: characters of each token: the first, and one past the last.
        spans: characters likewise.
    """
    first, last = offsets[:, 0], offsets[:, 1]
    inside = np.zeros(len(offsets), np.bool_)
    for start, stop in spans:
        # A token of no width, such as a prefix that SentencePiece puts in, belongs to the character that it precedes.
        some = np.maximum(first, start) < np.minimum(last, stop)
        inside |= np.where(first == last, (start <= first) & (first < stop), some)
    return inside
