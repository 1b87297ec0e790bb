"""What the search and the removal of layers wrote, `search.json` and `removal.json`, checked and as plain data."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chopjax.errors import UserError
from chopjax.report import words


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


def search(record: Mapping[str, Any]) -> Search:
    """Reads the body of `search.json`.

    Raises:
        UserError: names the field that is not as it should be.
    """
    fields = _Fields("search.json", record)
    lines = fields.of("candidates", _is_list, "a list")
    candidates = tuple(_candidate(line, f"candidates[{number}]") for number, line in enumerate(lines))
    chosen = fields.whole("chosen")
    if chosen is not None and chosen >= len(candidates):
        raise fields.error("chosen", chosen, f"a place among {len(candidates)} candidates")
    dense = fields.of("dense", _is_mapping, "an object", {})
    return Search(
        candidates=candidates,
        chosen=chosen,
        enumerated=fields.whole("enumerated"),
        feasible=fields.whole("feasible"),
        budget={str(name): str(said) for name, said in fields.of("budget", _is_mapping, "an object", {}).items()},
        cost=str(record.get("cost") or "params"),
        dense_parameters=words.number(dense.get("parameters")),
        dense_loss=words.number(dense.get("loss")),
    )


def removal(record: Mapping[str, Any]) -> Removal:
    """Reads the body of `removal.json`.

    Raises:
        UserError: names the field that is not as it should be.
    """
    fields = _Fields("removal.json", record)
    removed = fields.of("removed", _is_list, "a list", [])
    if not all(_is_whole(layer) for layer in removed) or len(set(removed)) != len(removed):
        raise fields.error("removed", removed, "a list of layers, each once")
    losses = fields.numbers("losses")
    if len(losses) != len(removed):
        raise fields.error("losses", losses, f"a loss for each of {len(removed)} removed layers")
    return Removal(
        metric=str(record.get("metric") or "next_token"),
        dense=words.number(record.get("dense")),
        removed=tuple(removed),
        losses=losses,
        count=fields.whole("count") or 0,
        blocks=fields.numbers("blocks"),
        without_one=fields.numbers("without_one"),
    )


def _candidate(line: Any, place: str) -> Candidate:
    fields = _Fields("search.json", line if isinstance(line, Mapping) else {}, f"{place}.")
    sizes = fields.of("sizes", _is_mapping, "an object")
    for axis, size in sizes.items():
        if not _is_whole(size):
            raise fields.error(f"sizes.{axis}", size, "a whole number")
    found = {name: words.number(fields.record.get(name)) for name in ("parameters", "cost", "loss", "distilled")}
    return Candidate(sizes, **found)


class _Fields:
    """A record of which a field of a wrong kind is said in one line."""

    def __init__(self, file: str, record: Mapping[str, Any], inside: str = "") -> None:
        self.file, self.record, self.inside = file, record, inside

    def of(self, name: str, fits: Callable[[Any], bool], kind: str, default: Any = None) -> Any:
        value = self.record.get(name)
        value = default if value is None else value
        if not fits(value):
            raise self.error(name, value, kind)
        return value

    def whole(self, name: str) -> int | None:
        return self.of(name, lambda value: value is None or _is_whole(value), "a whole number")

    def numbers(self, name: str) -> tuple[float, ...]:
        return tuple(words.number(value) for value in self.of(name, _is_list, "a list", []))

    def error(self, name: str, value: Any, kind: str) -> UserError:
        said = repr(value)
        said = said if len(said) <= 40 else f"{said[:37]}..."
        mend = "delete the file and run python -m chopjax.plan again"
        return UserError(f"{self.file}: {self.inside}{name} is {said}, not {kind}; {mend}")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
