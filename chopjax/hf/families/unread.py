"""Keys of config.json on which stock transformers acts and chopjax does not.

A key is refused unless its value changes nothing. Keys that no stock class of these families reads are ignored, as
there. Read in transformers 5.23: the attributes that its attention masks, caches and loaders take from any config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from chopjax.errors import UserError, short

if TYPE_CHECKING:
    from chopjax.hf.families.table import Family

# Of `auto_map`, the classes that AutoModelForCausalLM would take from the model's own code.
_OWN_CODE = ("AutoConfig", "AutoModelForCausalLM")


def _off(value: Any, positions: int) -> bool:
    return not value


def _on(value: Any, positions: int) -> bool:
    return bool(value)


def _beyond(value: Any, positions: int) -> bool:
    return value is None or (type(value) is int and value >= positions)


def _one_file(value: Any, positions: int) -> bool:
    return not value or value == ["config.json"]


def _stock_code(value: Any, positions: int) -> bool:
    return not value or (isinstance(value, Mapping) and not value.keys() & set(_OWN_CODE))


# Key → whether a value changes nothing for sequences of up to so many positions, and what another value does.
_KEYS: Mapping[str, tuple[Callable[[Any, int], bool], str]] = {
    "per_layer_config": (_off, "gives layers sizes of their own, which is not supported"),
    "is_causal": (_on, "lets tokens attend to later ones, which is not supported"),
    "is_encoder_decoder": (_off, "makes it an encoder with a decoder, which is not supported"),
    "attention_chunk_size": (_beyond, "limits attention to chunks, which is not supported"),
    "kv_sharing_modes": (_off, "lets layers share keys and values, which is not supported"),
    "fusion_config": (_off, "exchanges modules of the model, which is not supported"),
    "text_config": (_off, "describes the text part of a larger model; give a checkpoint of the text part alone"),
    "decoder": (_off, "describes the text part of a larger model; give a checkpoint of the text part alone"),
    "generator": (_off, "describes the text part of a larger model; give a checkpoint of the text part alone"),
    "transformers_weights": (
        _off,
        "names other weights than model.safetensors or its index; give the weights that name and remove the key",
    ),
    "configuration_files": (
        _one_file,
        "names other config files; rename the one that is meant to config.json and remove the key",
    ),
    "auto_map": (
        _stock_code,
        "names the model's own code, which is not run; remove auto_map if the stock classes of transformers compute "
        "the same",
    ),
}
_WINDOW = "sliding_window"
_WINDOW_EFFECT = (
    "limits generation from a cache in transformers, though this family has no sliding windows; set it to null"
)


def refuse_unread(family: Family, raw: Mapping[str, Any], positions: int) -> None:
    """Refuses keys that would make stock classes compute something else than is computed here.

    Args:
        family: of the config.
        raw: config.json.
        positions: the longest sequence that the model is meant for.

    Raises:
        UserError: names the first such key, its value, and what it does.
    """
    keys = dict(_KEYS)
    if family.windows == "none":
        keys[_WINDOW] = (_beyond, _WINDOW_EFFECT)
    for key, (harmless, effect) in keys.items():
        if key in raw and not harmless(raw[key], positions):
            raise UserError(f"config.json: {key} is {short(raw[key])}: it {effect}")
