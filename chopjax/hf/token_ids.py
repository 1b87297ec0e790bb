"""Token ids that the small files of a model name: new ones after a cut of the vocabulary, and those that end a text."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Int

from chopjax import files
from chopjax.errors import UserError
from chopjax.hf.source_files import CONFIG, GENERATION_CONFIG

# Ids, or lists of ids, that must not be said: what is gone needs no forbidding.
FORBIDDEN = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
_SUFFIXES = ("_token_id", "_token_ids", "_token_index")

Renumber = Callable[[int], int | None]


def renumbering(kept: Int[np.ndarray, "kept"], vocab: int) -> Renumber:
    """A function from old to new ids: None for one that is gone; ids outside of the table stay as they are."""
    new = {old: number for number, old in enumerate(kept.tolist())}
    return lambda number: new.get(number) if 0 <= number < vocab else number


def renumber_ids(found: Mapping[str, Any], renumber: Renumber, file: str) -> dict[str, Any]:
    """A config.json or generation_config.json with new ids, in nested configs too.

    Raises:
        UserError: an id that it names is gone.
    """
    changed = dict(found)
    for key, value in found.items():
        where = f"{file}: {key}"
        if key.endswith(_SUFFIXES) or key == "force_words_ids":
            changed[key] = new_ids(value, renumber, where)
        elif key in FORBIDDEN and isinstance(value, list):
            changed[key] = [new_ids(entry, renumber, file) for entry in value if _all_stay(entry, renumber)]
            if value and not changed[key]:  # transformers refuses an empty list of bad words
                del changed[key]
        elif key == "forced_decoder_ids" and isinstance(value, list):
            changed[key] = [[place, new_ids(number, renumber, where)] for place, number in value]
        elif key == "sequence_bias" and isinstance(value, list):
            changed[key] = [[new_ids(row, renumber, where), bias] for row, bias in value]
        elif isinstance(value, Mapping):
            changed[key] = renumber_ids(value, renumber, where)
    return changed


def new_ids(value: Any, renumber: Renumber, where: str) -> Any:
    """An id, or lists of them, in new numbers; whatever else stays.

    Raises:
        UserError: an id is gone; `where` says who names it.
    """
    if isinstance(value, list):
        return [new_ids(one, renumber, where) for one in value]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    number = renumber(value)
    if number is None:
        raise UserError(
            f"{where} names id {value}, which the plan does not keep; set plan.vocab to {value + 1} or more (in a plan "
            "file, add it to kept.vocab), or change the id in that file of the source"
        )
    return number


def named_in(found: Mapping[str, Any], file: str) -> list[tuple[str, int]]:
    """The ids that a config.json or generation_config.json names, each with the key that names it."""
    named: list[tuple[str, int]] = []
    for key in sorted(found):

        def note(number: int, where: str = f"{file}: {key}") -> int:
            named.append((where, number))
            return number

        renumber_ids({key: found[key]}, note, file)
    return list(dict.fromkeys(named))


def padding_beyond(raw: Mapping[str, Any], vocab: int) -> int | None:
    """A `pad_token_id` outside of the vocabulary, with which PyTorch builds no embedding; None where it has a row."""
    number = raw.get("pad_token_id")
    return number if is_id(number) and not -vocab <= number < vocab else None


def with_usable_padding(raw: Mapping[str, Any], vocab: int) -> Mapping[str, Any]:
    """A config.json whose `pad_token_id` is null where it has no row; no model can have been computed with it."""
    return raw if padding_beyond(raw, vocab) is None else {**raw, "pad_token_id": None}


def end_ids(folder: str | Path) -> frozenset[int]:
    """The ids that end a text for `generate` of transformers: of generation_config.json, or else of config.json.

    Raises:
        UserError: one of the files is not a JSON object.
    """
    for name in (GENERATION_CONFIG, CONFIG):
        value = (files.read_object(Path(folder) / name) or {}).get("eos_token_id")
        if ids := [number for number in (value if isinstance(value, list) else [value]) if is_id(number)]:
            return frozenset(number for number in ids if number >= 0)
    return frozenset()


def is_id(value: Any) -> TypeGuard[int]:
    """Whether a value of a JSON file is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def _all_stay(entry: Any, renumber: Renumber) -> bool:
    return all(renumber(number) is not None for number in (entry if isinstance(entry, list) else [entry]))
