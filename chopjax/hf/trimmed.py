"""The small files of a model whose vocabulary is trimmed: tokenizer and ids renumbered. Imports without jax.

A word's new id is its place among the kept ids.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int

from chopjax import files
from chopjax.errors import UserError
from chopjax.hf.source_files import CONFIG, GENERATION_CONFIG
from chopjax.hf.token_ids import FORBIDDEN, Renumber, new_ids, renumber_ids, renumbering
from chopjax.hf.vocabulary import check_words, pair_of, read_vocabulary, trims

TOKENIZER, SETTINGS, ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"

# Vocabularies that are not rewritten: SentencePiece models, those of WordPiece, tiktoken and Mistral, and a
# tokenizer.json for other versions of transformers.
_OTHER_FORMS = ("*.model", "vocab.txt")
_LEFT_OUT = (*_OTHER_FORMS, "tokenizer.model.*", "tekken.json", "*.tiktoken", "tokenizer.*.json")
_VERSIONS = "fast_tokenizer_files"  # in the settings: names of the last of them


def rewrite_tokenizer(folder: str | Path, kept: Int[np.ndarray, "kept"], vocab: int) -> dict[str, str | None]:
    """The small files of `folder` that name ids, with the kept ids numbered anew.

    Any text is decoded from its new ids as it was from the old. A text whose old ids were all kept is given the same
    ones, renumbered.

    Args:
        folder: Hugging Face folder with a `tokenizer.json` of type BPE or Unigram.
        kept: ascending ids.
        vocab: rows of the source's embedding table; ids beyond, which some configs hold, stay as they are.

    Returns:
        Contents by file name; None for a file that cannot follow and is left out: SentencePiece models, which other
        programs would read the old ids from, and vocabularies of other kinds. Of a folder without any tokenizer the
        generation config alone.

    Raises:
        UserError: the tokenizer is no `tokenizer.json` or of another kind, an id that a file names is not kept, or the
            kept words are not closed.
    """
    folder = Path(folder)
    renumber = renumbering(kept, vocab)
    raw = read_tokenizer(folder) if has_tokenizer(folder) else {}
    written: dict[str, str | None] = {}
    if raw:
        check_words(kept, raw)
        written[TOKENIZER] = _checked(_tokenizer(raw, renumber), raw, renumber)
    written |= rewrite_ids(folder, renumber, without=(_VERSIONS,))
    if (found := files.read_object(folder / "vocab.json")) is not None:
        written["vocab.json"] = _text(_words(found, renumber))
    if raw and (folder / "merges.txt").is_file():
        written["merges.txt"] = _merges_file((folder / "merges.txt").read_text(encoding="utf-8"), raw, renumber)
    return written | {file.name: None for pattern in _LEFT_OUT for file in folder.glob(pattern)}


def rewrite_ids(folder: Path, renumber: Renumber, without: tuple[str, ...] = ()) -> dict[str, str | None]:
    """The small files of `folder`, but for the vocabulary itself, in which the new ids change anything.

    Args:
        folder: Hugging Face folder.
        renumber: from old to new ids.
        without: keys of tokenizer_config.json that are left out.

    Raises:
        UserError: an id that a file names is gone.
    """
    rewritten: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        SETTINGS: lambda found: _without(_settings(found, renumber), without),
        GENERATION_CONFIG: lambda found: renumber_ids(found, renumber, GENERATION_CONFIG),
        ADDED: lambda found: _words(found, renumber),
    }
    written: dict[str, str | None] = {}
    for name, rewrite in rewritten.items():
        found = files.read_object(folder / name)
        if found is not None and (changed := rewrite(found)) != found:
            written[name] = _text(changed)
    return written


def unlisted(folder: str | Path) -> list[str]:
    """Tokens that the settings name and `tokenizer.json` lacks; transformers gives them the next ids."""
    folder = Path(folder)
    raw = files.read_object(folder / TOKENIZER)
    if raw is None or (raw.get("model") or {}).get("type") not in ("BPE", "Unigram"):
        return []
    listed = read_vocabulary(raw).ids
    return [token for token in dict.fromkeys(_special_tokens(folder)) if token not in listed]


def _special_tokens(folder: Path) -> Iterator[str]:
    """The spellings of all tokens that settings name."""
    named = (files.read_object(folder / "special_tokens_map.json") or {}) | (files.read_object(folder / SETTINGS) or {})
    values = [value for key, value in named.items() if key.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder"):
        more = named.get(key) or []
        values += more.values() if isinstance(more, dict) else more
    for value in values:
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            yield text


def has_tokenizer(folder: str | Path) -> bool:
    """Whether a folder holds a tokenizer in any form."""
    return any(file.is_file() for name in (TOKENIZER, "vocab.json", *_OTHER_FORMS) for file in Path(folder).glob(name))


def shared_words(whole: str | Path, part: str | Path) -> Int[np.ndarray, "kept"] | None:
    """The ids of the tokens that both folders have, if one tokenizer is the other without some tokens.

    One may have been trimmed to the other, or have added tokens more. None if it was not, or has no token more.
    """
    found = [files.read_object(Path(folder) / TOKENIZER) for folder in (whole, part)]
    if not all(raw and (raw.get("model") or {}).get("type") in ("BPE", "Unigram") for raw in found):
        return None
    one, other = (raw for raw in found if raw)
    try:
        kept = trimmed_from(one, other)
        return None if kept is None or not trims(kept, read_vocabulary(one).size) else kept
    except UserError:  # a kind of vocabulary that is never trimmed, or an id that the smaller one lacks
        return None


def trimmed_from(whole: Mapping[str, Any], part: Mapping[str, Any]) -> Int[np.ndarray, "kept"] | None:
    """The kept ids with which one `tokenizer.json` was trimmed to another; None if it was not.

    Args:
        whole: the one, whole.
        part: the other.
    """
    one, other = read_vocabulary(whole), read_vocabulary(part)
    ids = [one.ids.get(word, -1) for word, _ in sorted(other.ids.items(), key=lambda item: item[1])]
    kept = np.array(ids, np.int32)
    if other.kind != one.kind or other.size != len(ids) or kept.min(initial=0) < 0 or (np.diff(kept) <= 0).any():
        return None
    made = _tokenizer(whole, renumbering(kept, one.size))
    same = (read_vocabulary(made).merges, made["model"]["vocab"]) == (other.merges, part["model"]["vocab"])
    return kept if same and all(made.get(key) == part.get(key) for key in ("normalizer", "pre_tokenizer")) else None


def named_ids(folder: str | Path, vocab: int) -> set[int]:
    """Ids below `vocab` that the configs of a folder name, which a trimmed vocabulary has to keep."""
    folder = Path(folder)
    named: set[int] = set()

    def note(number: int) -> int:
        if 0 <= number < vocab:
            named.add(number)
        return number

    for name in (CONFIG, GENERATION_CONFIG):
        found = files.read_object(folder / name) or {}
        renumber_ids({key: value for key, value in found.items() if key not in FORBIDDEN}, note, name)
    settings = files.read_object(folder / SETTINGS) or {}
    _settings(settings, note)
    ids = read_vocabulary(read_tokenizer(folder)).ids
    named.update(ids[token] for token in _special_tokens(folder) if ids.get(token, vocab) < vocab)
    return named


def read_tokenizer(folder: str | Path) -> dict[str, Any]:
    """The `tokenizer.json` of a folder.

    Raises:
        UserError: there is none.
    """
    raw = files.read_object(Path(folder) / TOKENIZER)
    if raw is None:
        raise UserError(f"{folder}: has no tokenizer.json, which is what can be trimmed; save one with transformers")
    return raw


def _words(found: Mapping[str, Any], renumber: Renumber) -> dict[str, int]:
    """A vocabulary without the words that are gone, by new id."""
    words = {word: number for word, old in found.items() if (number := renumber(old)) is not None}
    return dict(sorted(words.items(), key=lambda item: item[1]))


def _tokenizer(raw: Mapping[str, Any], renumber: Renumber) -> dict[str, Any]:
    model = dict(raw["model"])
    if read_vocabulary(raw).kind == "BPE":
        model["vocab"] = words = _words(model["vocab"], renumber)
        model["merges"] = [merge for merge in model["merges"] if _stays(pair_of(merge), words)]
    else:
        model["vocab"] = [piece for number, piece in enumerate(model["vocab"]) if renumber(number) is not None]
        if model.get("unk_id") is not None:
            model["unk_id"] = renumber(model["unk_id"])
    tokens = [{**token, "id": renumber(token["id"])} for token in raw.get("added_tokens") or []]
    added = [token for token in tokens if token["id"] is not None]
    changed = {**raw, "model": model, "added_tokens": added}
    if raw.get("post_processor"):
        changed["post_processor"] = _post_processor(raw["post_processor"], renumber)
    if raw.get("padding"):
        changed["padding"] = {**raw["padding"], "pad_id": new_ids(raw["padding"]["pad_id"], renumber, TOKENIZER)}
    return changed


def _stays(pair: tuple[str, str], words: Mapping[str, int]) -> bool:
    return pair[0] in words and pair[1] in words and pair[0] + pair[1] in words


def _post_processor(part: Mapping[str, Any], renumber: Renumber) -> dict[str, Any]:
    """What puts special tokens around a text: by name and id."""
    where = f"{TOKENIZER}: post_processor"
    changed = dict(part)
    if "processors" in part:
        changed["processors"] = [_post_processor(inner, renumber) for inner in part["processors"]]
    if "special_tokens" in part:
        changed["special_tokens"] = {
            name: {**token, "ids": new_ids(token["ids"], renumber, where)}
            for name, token in part["special_tokens"].items()
        }
    for key in ("sep", "cls"):  # of RobertaProcessing and BertProcessing: [token, id]
        if key in part:
            changed[key] = new_ids(part[key], renumber, where)
    return changed


def _settings(found: Mapping[str, Any], renumber: Renumber) -> dict[str, Any]:
    changed = renumber_ids(found, renumber, SETTINGS)
    if "added_tokens_decoder" in found:
        where = f"{SETTINGS}: added_tokens_decoder"
        changed["added_tokens_decoder"] = {
            str(new_ids(int(number), renumber, where)): token for number, token in found["added_tokens_decoder"].items()
        }
    return changed


def _without(found: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in keys}


def _merges_file(text: str, raw: Mapping[str, Any], renumber: Renumber) -> str:
    words = _words(read_vocabulary(raw).words, renumber)
    lines = text.splitlines()
    head = lines[:1] if lines and lines[0].startswith("#version") else []
    stay = [line for line in lines[len(head) :] if line and _stays(pair_of(line), words)]
    return "\n".join([*head, *stay]) + "\n"


def _checked(changed: dict[str, Any], raw: Mapping[str, Any], renumber: Renumber) -> str:
    """The text of a `tokenizer.json`, if `tokenizers` makes the wanted ids of it.

    It numbers added tokens by its own rules, which agree with a file's ids only if those follow the model's.
    """
    text = _text(changed)
    try:
        made = tokenizers.Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{TOKENIZER}: cannot be trimmed to these words ({error})") from error
    wanted = _words(read_vocabulary(raw).ids, renumber)
    if made != wanted:
        word = next(word for word in {**made, **wanted} if made.get(word) != wanted.get(word))
        raise UserError(
            f"{TOKENIZER}: {word!r} would have id {made.get(word)} instead of {wanted.get(word)}; its added tokens "
            "cannot be renumbered, so this vocabulary cannot be trimmed"
        )
    return text


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
