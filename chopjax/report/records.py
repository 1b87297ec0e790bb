"""What the search and the removal of layers wrote, `search.json` and `removal.json`, checked and as plain data."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from chopjax import records
from chopjax.errors import UserError
from chopjax.report import words

NEWEST = 1  # format
AGAIN = "delete the file and run python -m chopjax.plan again"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Sizes that were tried; NaN where a figure was not measured.

    Attributes:
        sizes: axis → size.
        parameters: of the student.
        cost: the figure that the search was to spend, in its own unit.
        loss: on calibration rows with everything else masked, before healing, in nats a token.
        distilled: on held-out rows after a short distillation, in nats a token.
    """

    sizes: Mapping[str, int]
    parameters: float
    cost: float
    loss: float
    distilled: float


@dataclasses.dataclass(frozen=True)
class Search:
    """A search over sizes.

    Attributes:
        candidates: those that were tried.
        chosen: the place among them of the one that was taken; None if none was.
        enumerated: how many there were in the space; None if that is not known.
        feasible: how many of them met the budget; None if that is not known.
        budget: name → limit as it was given.
        cost: name of the figure that the search was to spend.
        dense_parameters: of the source; NaN if not known.
        dense_loss: of the source on the same rows as `loss`; NaN if not known.
    """

    candidates: Sequence[Candidate]
    chosen: int | None = None
    enumerated: int | None = None
    feasible: int | None = None
    budget: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cost: str = "params"
    dense_parameters: float = math.nan
    dense_loss: float = math.nan


@dataclasses.dataclass(frozen=True)
class Removal:
    """Losses without layers; each part may be empty, and NaN stands where a loss is not finite.

    Attributes:
        metric: what the losses are.
        dense: the loss with all layers; NaN if not known.
        removed: layers in the order in which they went.
        losses: the loss after each of these.
        count: layers in a contiguous block.
        blocks: the loss without each block, by its first layer.
        without_one: the loss without each layer.
    """

    metric: str = "next_token"
    dense: float = math.nan
    removed: Sequence[int] = ()
    losses: Sequence[float] = ()
    count: int = 0
    blocks: Sequence[float] = ()
    without_one: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class _Dense:
    parameters: float | None = None
    loss: float | None = None


@dataclasses.dataclass(frozen=True)
class _Candidate:
    sizes: Mapping[str, records.Count]
    parameters: float | None = None
    cost: float | None = None
    loss: float | None = None
    distilled: float | None = None


@dataclasses.dataclass(frozen=True)
class _Search:
    candidates: tuple[_Candidate, ...]
    chosen: records.Count | None = None
    enumerated: records.Count | None = None
    feasible: records.Count | None = None
    budget: Mapping[str, Any] | None = None
    cost: str | None = None
    dense: _Dense | None = None


@dataclasses.dataclass(frozen=True)
class _Removal:
    metric: str | None = None
    dense: float | None = None
    removed: tuple[records.Count, ...] | None = None
    losses: tuple[float | None, ...] | None = None
    count: records.Count | None = None
    blocks: tuple[float | None, ...] | None = None
    without_one: tuple[float | None, ...] | None = None


def search(record: Mapping[str, Any], where: str = "search.json") -> Search:
    """Reads the body of `search.json`.

    Raises:
        UserError: names the field that is not as it should be.
    """
    found = _read(record, _Search, where)
    dense = found.dense or _Dense()
    if found.chosen is not None and found.chosen >= len(found.candidates):
        raise _wrong(where, "chosen", found.chosen, f"a place among {len(found.candidates)} candidates")
    return Search(
        candidates=tuple(
            Candidate(line.sizes, *map(words.number, (line.parameters, line.cost, line.loss, line.distilled)))
            for line in found.candidates
        ),
        chosen=found.chosen,
        enumerated=found.enumerated,
        feasible=found.feasible,
        budget={name: str(limit) for name, limit in (found.budget or {}).items()},
        cost=found.cost or "params",
        dense_parameters=words.number(dense.parameters),
        dense_loss=words.number(dense.loss),
    )


def removal(record: Mapping[str, Any], where: str = "removal.json") -> Removal:
    """Reads the body of `removal.json`.

    Raises:
        UserError: names the field that is not as it should be.
    """
    found = _read(record, _Removal, where)
    removed, losses = list(found.removed or ()), list(found.losses or ())
    if len(set(removed)) != len(removed):
        raise _wrong(where, "removed", removed, "a list of layers, each once")
    if len(losses) != len(removed):
        raise _wrong(where, "losses", losses, f"a loss for each of {len(removed)} removed layers")
    return Removal(
        metric=found.metric or "next_token",
        dense=words.number(found.dense),
        removed=tuple(removed),
        losses=_numbers(losses),
        count=found.count or 0,
        blocks=_numbers(found.blocks),
        without_one=_numbers(found.without_one),
    )


def _read(record: Mapping[str, Any], shape: type[records.Shape], where: str) -> records.Shape:
    body = dict(record)
    records.check_format(body, NEWEST, where, AGAIN)
    return records.shaped(body, shape, where, AGAIN, extra=True)


def _numbers(values: Sequence[float | None] | None) -> tuple[float, ...]:
    return tuple(words.number(value) for value in values or ())


def _wrong(where: str, name: str, value: Any, kind: str) -> UserError:
    text = repr(value)
    text = text if len(text) <= 40 else f"{text[:37]}..."
    return UserError(f"{where}: {name} is {text}, not {kind}; {AGAIN}")
