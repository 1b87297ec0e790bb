"""What a model costs and how well it does, before and after, as the rows of a table."""

import dataclasses
import math
from collections.abc import Callable, Mapping

from chopjax import records
from chopjax.models import parameters
from chopjax.models.config import ModelConfig
from chopjax.report import words

# The models that a table may hold, in its order. `source` is given only where the teacher is another model.
COLUMNS = ("source", "teacher", "chopped", "healed")


@dataclasses.dataclass(frozen=True)
class ModelFigures:
    """The figures of one model; None where a figure was not measured.

    Attributes:
        parameters: all parameters, tied tables counted once.
        non_embedding_parameters: those outside the embedding and unembedding tables.
        flops_per_token: forward FLOPs of one token at the report's length.
        weight_bytes: bytes of the exported weights.
        kv_cache_bytes: bytes of keys and values for one sequence of the report's length.
        perplexity: on held-out rows.
        kl_to_teacher: mean KL divergence from the teacher in nats a token, on held-out rows.
    """

    parameters: records.Count | None = None
    non_embedding_parameters: records.Count | None = None
    flops_per_token: records.NotNegative | None = None
    weight_bytes: records.Count | None = None
    kv_cache_bytes: records.Count | None = None
    perplexity: float | None = None
    kl_to_teacher: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the before/after table: a cell for each model, and the last model over the first."""

    label: str
    cells: tuple[str, ...]
    ratio: str


def measure(
    config: ModelConfig,
    length: int,
    bytes_per_value: int = 2,
    perplexity: float | None = None,
    kl_to_teacher: float | None = None,
) -> ModelFigures:
    """The figures of a model that follow from its config, with those that were measured beside them.

    Args:
        config: the model.
        length: tokens of the sequence for which FLOPs and the KV cache are counted.
        bytes_per_value: bytes of one stored weight and of one cached key or value.
        perplexity: on held-out rows.
        kl_to_teacher: in nats a token, on held-out rows.
    """
    count = parameters.count(config)
    return ModelFigures(
        parameters=count,
        non_embedding_parameters=parameters.count(config, embeddings=False),
        flops_per_token=parameters.flops_per_token(config, length),
        weight_bytes=count * bytes_per_value,
        kv_cache_bytes=parameters.kv_cache_bytes(config, length, bytes_per_value),
        perplexity=perplexity,
        kl_to_teacher=kl_to_teacher,
    )


def gap_closed(teacher: float | None, chopped: float | None, healed: float | None) -> float | None:
    """The share of the log-perplexity gap between the chopped model and the teacher that healing closed.

    1 if the healed model is as good as the teacher, negative if healing made it worse. None where a perplexity is
    absent or not finite, or where chopping lost nothing that could be won back.
    """
    values = [words.number(value) for value in (teacher, chopped, healed)]
    if not all(value > 0 for value in values):
        return None
    before, low, after = (math.log(value) for value in values)
    return (low - after) / (low - before) if low > before else None


def table(models: Mapping[str, ModelFigures], length: int | None = None) -> list[Row]:
    """The rows for which at least one of the models has a figure; `models` in the order of the columns."""
    at = f" at {length:,} tokens" if length else ""
    lines: list[tuple[str, str, Callable[[float], str], bool]] = [
        ("Parameters", "parameters", words.scaled, True),
        ("… outside the embeddings", "non_embedding_parameters", words.scaled, True),
        (f"Forward FLOPs a token{at}", "flops_per_token", _flops, True),
        ("Weights", "weight_bytes", _bytes, True),
        (f"KV cache{at}", "kv_cache_bytes", _bytes, True),
        ("Held-out perplexity", "perplexity", words.significant, True),
        ("KL to the teacher, nats a token", "kl_to_teacher", words.significant, False),
    ]
    rows = []
    for label, field, show, compare in lines:
        values = [getattr(model, field) for model in models.values()]
        if any(value is not None for value in values):
            ratio = _ratio(values) if compare else ""
            rows.append(Row(label, tuple(_cell(value, show) for value in values), ratio))
    return rows


def _cell(value: float | None, show: Callable[[float], str]) -> str:
    if value is None:
        return words.ABSENT
    return show(value) if math.isfinite(words.number(value)) else "not finite"


def _ratio(values: list[float | None]) -> str:
    first, last = words.number(values[0]), words.number(values[-1])
    if len(values) < 2 or not first > 0 or math.isnan(last):
        return ""
    return f"× {last / first:.2f}"


def _bytes(value: float) -> str:
    return words.scaled(value, "B", "kMGT")


def _flops(value: float) -> str:
    return words.scaled(value, "FLOP", "kMGT")
