"""Special tokens that a tokenizer's folder names, in the order of precedence of stock transformers."""

import pathlib
from collections.abc import Mapping
from typing import Any

from chopjax import files


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


def _names(settings: Mapping[str, Any]) -> dict[str, str]:
    plain = {name: content_of(value) for name, value in settings.items() if name.endswith("_token")}
    return {name: value for name, value in plain.items() if isinstance(value, str)}


def content_of(token: Any) -> Any:
    """The spelling of a token, which files hold as text or as an object with `content`."""
    return token.get("content") if isinstance(token, Mapping) else token
