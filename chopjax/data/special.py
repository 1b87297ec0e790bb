"""Special tokens that a tokenizer's folder names, in the order of precedence of stock transformers."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers

from chopjax import files
from chopjax.errors import UserError


def special_settings(folder: pathlib.Path) -> dict[str, Any]:
    """`tokenizer_config.json`, with what the older `special_tokens_map.json` says.

    That file is read only where the config has no `added_tokens_decoder`, and then it takes precedence.

    Raises:
        UserError: a file is no JSON object.
    """
    settings = files.read_object(folder / "tokenizer_config.json") or {}
    if "added_tokens_decoder" in settings:
        return settings
    return settings | (files.read_object(folder / "special_tokens_map.json") or {})


def special_names(folder: pathlib.Path) -> dict[str, str]:
    """The special tokens by the names that templates know them by: `bos_token`, `eos_token`, ...

    Raises:
        UserError: a file is no JSON object.
    """
    return _names(special_settings(folder))


def merged_names(folder: pathlib.Path) -> dict[str, str]:
    """As `special_names`, but of both files, with precedence for `tokenizer_config.json`.

    Raises:
        UserError: a file is no JSON object.
    """
    older = files.read_object(folder / "special_tokens_map.json") or {}
    return _names(older | (files.read_object(folder / "tokenizer_config.json") or {}))


def add_tokens(core: tokenizers.Tokenizer, folder: pathlib.Path) -> None:
    """Adds the tokens that other files of the folder add to those of `tokenizer.json`, as stock transformers does.

    They are in `added_tokens_decoder` of the config, whose properties of a token take precedence, or without it in the
    older `added_tokens.json`.

    Raises:
        UserError: a file is no JSON object, or names a token or an id that cannot be.
    """
    for file, number, token in sorted(_added(core, folder), key=lambda entry: entry[1]):
        new = core.token_to_id(token.content) is None
        core.add_tokens([token])
        found = core.token_to_id(token.content)
        if new and found != number:
            raise UserError(
                f"{folder / file}: token {token.content!r} would have id {found} in place of {number}; add it to "
                "tokenizer.json with that id"
            )


def _added(core: tokenizers.Tokenizer, folder: pathlib.Path) -> Iterator[tuple[str, int, tokenizers.AddedToken]]:
    """File, id and token of each."""
    settings = special_settings(folder)
    file, named = "added_tokens.json", set(_names(settings).values())
    try:
        if "added_tokens_decoder" in settings:
            file = "tokenizer_config.json"
            for number, fields in settings["added_tokens_decoder"].items():
                yield file, int(number), tokenizers.AddedToken(**fields)
            return
        there = {token.content for token in core.get_added_tokens_decoder().values()}
        for text, number in (files.read_object(folder / file) or {}).items():
            if text not in there:
                special = text in named
                yield file, int(number), tokenizers.AddedToken(text, normalized=not special, special=special)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{folder / file}: its added tokens cannot be read ({error}); correct or remove them"
        ) from error


def _names(settings: Mapping[str, Any]) -> dict[str, str]:
    plain = {name: content_of(value) for name, value in settings.items() if name.endswith("_token")}
    return {name: value for name, value in plain.items() if isinstance(value, str)}


def content_of(token: Any) -> Any:
    """The spelling of a token, which files hold as text or as an object with `content`."""
    return token.get("content") if isinstance(token, Mapping) else token
