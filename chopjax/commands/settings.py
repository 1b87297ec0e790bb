"""`Settings`: everything a run was told, turned once from a ConfigDict into frozen dataclasses and checked.

The dataclasses are the one source of defaults; this module says only where in the ConfigDict each of them lives.
"""

import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from chopjax import checks, files, paths
from chopjax.chop.config import PlanConfig
from chopjax.chop.dimchop_config import DimChopConfig
from chopjax.commands import integers
from chopjax.data.config import DataConfig
from chopjax.distill.cache_config import CacheConfig
from chopjax.distill.config import LossConfig
from chopjax.distill.hidden_config import HiddenConfig
from chopjax.distill.on_policy_config import OnPolicyConfig
from chopjax.errors import UserError
from chopjax.evaluate.config import EvaluateConfig
from chopjax.hf.config import ExportConfig
from chopjax.score.config import ScoreConfig
from chopjax.search.config import SearchConfig
from chopjax.sharding.rules import MeshConfig
from chopjax.train.config import CorrectionConfig, OptimizerConfig, TrainConfig

# Fields that say how a run is watched, laid out or kept, and cannot change what it learns beyond the order of sums.
WITHOUT_EFFECT = frozenset(
    {
        "workdir",
        "compilation_cache",
        "train.remat",
        "train.log_every",
        "train.evaluate_every",
        "train.save_every",
        "train.keep",
        "train.keep_best",
        "train.tensorboard",
        "train.wandb",
        "train.skip_limit",
        "train.hang_seconds",
        "train.hang_ends",
        "data.threads",
        "data.prefetch",
        # Where a cache lies, and in what pieces: each record is of given tokens and a given teacher.
        "cache.path",
        "cache.shard_rows",
        "cache.rows",
        "on_policy.gather",
    }
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """A run's whole configuration.

    Attributes:
        source: folder or hub id of the Hugging Face checkpoint to make smaller.
        workdir: folder of everything the run writes.
        seed: of every random choice: order of data, sampling.
        teacher: folder or hub id of the teacher; empty for `source`.
        rounds: for repeated chopping, what changes in each round, as `{"plan.remove_layers": 2, "train.steps": 100}`;
            each round chops what the one before it exported.
        compilation_cache: folder or place in a store where compiled programs are kept, for the next start to load
            instead of compiling; empty for none.
    """

    source: str = ""
    workdir: str = ""
    seed: int = 0
    teacher: str = ""
    rounds: tuple[dict[str, Any], ...] = ()
    compilation_cache: str = ""
    score: ScoreConfig = ScoreConfig()
    plan: PlanConfig = PlanConfig()
    search: SearchConfig = SearchConfig()
    dimchop: DimChopConfig = DimChopConfig()
    loss: LossConfig = LossConfig()
    hidden: HiddenConfig = HiddenConfig()
    cache: CacheConfig = CacheConfig()
    correction: CorrectionConfig = CorrectionConfig()
    on_policy: OnPolicyConfig = OnPolicyConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()

    def __post_init__(self) -> None:
        if not -(2**63) <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}; give a number of at most 64 bits")

    def fields(self, *sections: str) -> dict[str, Any]:
        """The fields of the named sections, or of all, as `{"train.steps": 200}`."""
        flat: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            section, value = section_of(field.name), getattr(self, field.name)
            if not sections or section in sections:
                flat |= checks.fields(value, section) if dataclasses.is_dataclass(value) else {field.name: value}
        return flat

    def dotted(self, *sections: str) -> dict[str, Any]:
        """`fields`, as JSON can hold them."""
        return {name: _plain(value) for name, value in self.fields(*sections).items()}

    def identity(self, *sections: str) -> dict[str, Any]:
        """`dotted`, without the fields that cannot change what is learnt."""
        return {
            name: value
            for name, value in self.dotted(*sections).items()
            if name not in WITHOUT_EFFECT and not name.startswith("mesh.")
        }

    def changed(self, changes: Mapping[str, Any]) -> "Settings":
        """These settings with some fields changed, by dotted names, and checked again.

        Raises:
            UserError: as `from_mapping`.
        """
        unknown = [name for name in changes if name not in self.fields()]
        if unknown:
            raise UserError(f"rounds: {unknown[0]} is not a field; {checks.near(unknown[0], self.fields())}")
        return from_mapping(nested(self.fields() | dict(changes)))

    def require(self, *names: str) -> None:
        """Refuses empty top-level fields.

        Raises:
            UserError: one of the named fields is empty.
        """
        for name in names:
            if not getattr(self, name):
                raise UserError(f"{name} is empty; set it in the config file or give --config.{name}=...")


def integer_lists() -> list[str]:
    """The dotted names of the fields that hold lists of integers, which text with ranges may stand for."""
    return [
        f"{section}.{field}"
        for section, hint in typing.get_type_hints(Settings).items()
        if dataclasses.is_dataclass(hint)
        for field, inner in typing.get_type_hints(hint).items()
        if _holds_integers(inner)
    ]


def section_of(name: str) -> str:
    """The ConfigDict section that feeds a field of `Settings`; the optimizer's fields are set under `train`."""
    return "train" if name == "optimizer" else name


def from_mapping(config: Mapping[str, Any]) -> Settings:
    """Turns a nested mapping (a ConfigDict, or a read `config.json`) into checked `Settings`.

    Raises:
        UserError: an unknown field, a value of the wrong type, or one that its room refuses.
    """
    hints = typing.get_type_hints(Settings)
    _refuse_unknown(config, {section_of(name) for name in hints}, "config")
    known = [name.rpartition(".") for name in Settings().dotted()]
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        section = section_of(name)
        if section not in config:
            continue
        if dataclasses.is_dataclass(hint):
            _refuse_unknown(config[section], [field for place, _, field in known if place == section], section)
            values[name] = _from_section(typing.cast(type, hint), config[section], section)
        else:
            values[name] = _coerce(config[name], hint, name)
    settings = Settings(**values)
    for changes in settings.rounds:
        if refused := {"workdir", "rounds"} & changes.keys():
            raise UserError(f"rounds: {refused.pop()} cannot change from round to round; set it for all of them")
        settings.changed({"rounds": (), **changes})
    return settings


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """`{"train.steps": 200}` as `{"train": {"steps": 200}}`."""
    tree: dict[str, Any] = {}
    for name, value in dotted.items():
        section, _, field = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[field] = value
    return tree


@functools.cache
def defaults() -> dict[str, Any]:
    """Defaults as JSON can hold them: of each field by its dotted name, of entries of a list by `NAME[]`."""
    sections = (
        (name, hint) for name, hint in typing.get_type_hints(Settings).items() if dataclasses.is_dataclass(hint)
    )
    found = Settings().dotted()
    for name, hint in sections:
        found |= _defaults_of_entries(typing.cast(type, hint), section_of(name))
    return found


def _defaults_of_entries(cls: type, section: str) -> dict[str, Any]:
    """Of each field of a config that lists dataclasses, the defaults of these, by `SECTION.FIELD[]`."""
    hints, found = typing.get_type_hints(cls), dict[str, Any]()
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        entry = next(iter(typing.get_args(hint)), None)
        if dataclasses.is_dataclass(hint):
            found |= _defaults_of_entries(typing.cast(type, hint), section)
        elif dataclasses.is_dataclass(entry):
            given = (part for part in dataclasses.fields(entry) if part.default is not dataclasses.MISSING)
            found[f"{section}.{checks.alias(field)}[]"] = {part.name: _plain(part.default) for part in given}
    return found


def write(settings: Settings) -> pathlib.Path:
    """Writes the resolved config to `WORKDIR/config.json`, atomically; `from_mapping` reads it back."""
    path = paths.make(settings.workdir) / "config.json"
    files.write_json(path, nested(settings.dotted()))
    return path


def written(workdir: pathlib.Path) -> bool:
    """Whether `write` wrote the `config.json` in this folder."""
    try:
        found = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"source", "workdir", "train"} <= found.keys()


def _from_section(cls: type, section: Mapping[str, Any], name: str) -> Any:
    """A config, and the configs inside it, from the one section that holds the fields of all of them."""
    hints, values = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        hint, key = hints[field.name], checks.alias(field)
        if dataclasses.is_dataclass(hint):
            values[field.name] = _from_section(typing.cast(type, hint), section, name)
        elif key in section:
            values[field.name] = _coerce(section[key], hint, f"{name}.{key}")
    return cls(**values)


def _refuse_unknown(given: Iterable[str], known: Collection[str], where: str) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UserError(f"{where}.{unknown[0]} is not a field; {checks.near(unknown[0], known)}")


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """`value` as the annotated type; integers pass for floats, lists for tuples, mappings for dataclasses."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerce(value, next(argument for argument in arguments if argument is not type(None)), name)
    if origin is typing.Literal or hint is Any:
        return value  # the room says what it lists
    if _holds_integers(hint):
        value = _integers(value, name)
    if origin is tuple and isinstance(value, list | tuple):
        element = arguments[0] if arguments else Any
        return tuple(_coerce(item, element, f"{name}[{index}]") for index, item in enumerate(value))
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        _refuse_unknown(value, {field.name for field in dataclasses.fields(hint)}, name)
        inner = typing.get_type_hints(hint)
        return typing.cast(type, hint)(
            **{key: _coerce(item, inner[key], f"{name}.{key}") for key, item in value.items()}
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and math.isinf(value):
        raise UserError(f"{name} is {value}; give a finite number")
    if dataclasses.is_dataclass(hint) and not isinstance(value, typing.cast(type, hint)):
        known = ", ".join(field.name for field in dataclasses.fields(hint))
        raise UserError(f"{name} is {value!r}; give a mapping such as {{...}} of {known}")
    accepted = origin or hint
    if not isinstance(value, accepted) or (accepted is int and isinstance(value, bool)):
        raise UserError(f"{name} is {value!r}; give a value of type {getattr(accepted, '__name__', accepted)}")
    return value


def _holds_integers(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple and typing.get_args(hint)[:1] == (int,)


def _integers(value: Any, name: str) -> Any:
    """`value` with text such as `0-3,12-31` replaced by the integers that it stands for, and one integer as a list."""
    if isinstance(value, str):
        return integers.parse(value, name)
    if isinstance(value, range | int) and not isinstance(value, bool):
        return tuple(value) if isinstance(value, range) else (value,)
    if isinstance(value, list | tuple):
        parts = (integers.parse(item, name) if isinstance(item, str) else (item,) for item in value)
        return tuple(itertools.chain.from_iterable(parts))
    return value


def _plain(value: Any) -> Any:
    """Tuples as lists, dataclasses and mappings as dicts, paths as text: what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
