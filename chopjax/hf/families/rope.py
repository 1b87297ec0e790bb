"""Rotary embeddings of config.json, in the styles of transformers 4 (`rope_scaling`) and 5 (`rope_parameters`)."""

from collections.abc import Mapping
from typing import Any, cast, get_args

from chopjax.errors import UserError
from chopjax.hf.families.values import positive
from chopjax.models.config import Rope, RopeKind

_ORIGINAL = "original_max_position_embeddings"

# Field of `Rope` → key of `rope_parameters`, for every key that a scaling kind reads beside `rope_theta`.
_KEYS: Mapping[str, str] = {
    "factor": "factor",
    "original_positions": _ORIGINAL,
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "truncate": "truncate",
    "short_factor": "short_factor",
    "long_factor": "long_factor",
}
_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_positions", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_positions"),
    "longrope": ("factor", "original_positions", "short_factor", "long_factor"),
}
_OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("attention_factor",),
}


def rope_from_hf(raw: Mapping[str, Any], positions: int, head_dim: int, rotary_fraction: float | None) -> Rope:
    """Reads either style, or both in one file, with the precedence of transformers 5.

    Where `factor` is missing for yarn or longrope it is `positions` over the original positions, as there.

    Args:
        raw: config.json.
        positions: the model's `max_position_embeddings`.
        head_dim: width of a head, for which longrope has one factor to two channels.
        rotary_fraction: default of `partial_rotary_factor`; None if the family's classes ignore it.

    Raises:
        UserError: an unknown kind, a missing field, one that is no number, or per-layer rope.
    """
    # transformers 5 prefers a non-empty rope_scaling to rope_parameters, and either to top-level keys.
    given = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise UserError(f"config.json: rope_scaling is {given!r:.120}; it must be an object")
    found = dict(given)
    if any(isinstance(value, Mapping) for value in found.values()):
        raise UserError("config.json: rope_parameters that differ by layer type are not supported")
    kind = found.get("rope_type", found.get("type", "default")) or "default"
    if kind not in get_args(RopeKind):
        raise UserError(f"config.json: unsupported rope_type {kind!r:.120}; supported: {', '.join(get_args(RopeKind))}")
    fraction = found.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if rotary_fraction is None and fraction not in (None, 1, 1.0):
        raise UserError(
            f"config.json: partial_rotary_factor {fraction!r:.120} is not supported for {raw.get('model_type')}"
        )
    fields = {field: _value(found, _KEYS[field]) for field in _fields(kind) if found.get(_KEYS[field]) is not None}
    if "original_positions" in _REQUIRED[kind]:
        # A top-level value wins in transformers 5; without any, the model's own positions are meant.
        original = _value(raw, _ORIGINAL) if raw.get(_ORIGINAL) else fields.get("original_positions") or positions
        fields["original_positions"] = int(original)
        if kind in ("yarn", "longrope"):
            fields.setdefault("factor", positions / original)
    missing = [_KEYS[field] for field in _REQUIRED[kind] if field not in fields]
    if missing:
        raise UserError(f"config.json: rope_type {kind!r} needs {', '.join(missing)}")
    theta = positive({"rope_theta": _first(found.get("rope_theta"), raw.get("rope_theta"), 10_000.0)}, "rope_theta")
    share = positive({"share": _first(fraction, rotary_fraction, 1.0)}, "share", shown="partial_rotary_factor")
    for name in ("short_factor", "long_factor"):
        pairs = int(head_dim * share) // 2
        if name in fields and len(fields[name]) != pairs:
            raise UserError(f"config.json: {name} has {len(fields[name])} entries, but a head has {pairs} rotary pairs")
    return Rope(kind=cast(RopeKind, kind), theta=theta, rotary_fraction=share, **fields)


def rope_to_hf(rope: Rope, partial: bool) -> dict[str, Any]:
    """The keys that both transformers 4 and 5 read: `rope_theta` with `rope_scaling`, and `rope_parameters`.

    Args:
        partial: whether the family has `partial_rotary_factor`, which is then written too.
    """
    scaling: dict[str, Any] = {"rope_type": rope.kind}
    for field in _fields(rope.kind):
        value = getattr(rope, field)
        if value is not None:
            scaling[_KEYS[field]] = list(value) if isinstance(value, tuple) else value
    fraction = {"partial_rotary_factor": rope.rotary_fraction} if partial else {}
    keys: dict[str, Any] = {
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.kind == "default" else scaling,
        "rope_parameters": {"rope_theta": rope.theta, **scaling, **fraction},
        **fraction,
    }
    if rope.kind == "longrope":
        keys[_ORIGINAL] = rope.original_positions  # transformers 4 looks for it outside rope_scaling
    return keys


ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", _ORIGINAL)


def _fields(kind: str) -> tuple[str, ...]:
    return _REQUIRED[kind] + _OPTIONAL.get(kind, ())


def _value(values: Mapping[str, Any], key: str) -> Any:
    value = values[key]
    if key in ("short_factor", "long_factor"):
        entries = value if isinstance(value, list) else [value]
        return tuple(positive({key: entry}, key) for entry in entries)
    if key == "truncate":
        return bool(value)
    if key in ("mscale", "mscale_all_dim") and value == 0:
        return 0.0
    return int(positive(values, key)) if key == _ORIGINAL else positive(values, key)


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
