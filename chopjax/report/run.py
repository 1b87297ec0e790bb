"""What a run left behind, as plain data, and its outcome in one sentence."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from chopjax.chop.plan import Plan
from chopjax.report import figures, words
from chopjax.report.figures import ModelFigures
from chopjax.report.records import Removal, Search


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that the page shows. Any part but the source may be absent.

    Attributes:
        source: name, folder or hub id of the model that was chopped.
        teacher: the same of the model that taught; empty for the source itself.
        plan: what was kept, and why.
        metrics: the lines of `metrics.jsonl`, in order.
        models: figures of `teacher`, `chopped` and `healed`; of `source` too where the teacher is another model.
        samples: for each prompt a mapping with `prompt` and a text for each of `teacher`, `chopped`, `healed`.
        tokens: tokens that the student was trained on; those of the last metrics where it is None.
        seconds: wall-clock time of the whole run.
        length: tokens of the sequence for which FLOPs and the KV cache were counted.
        gap_closed: share of the lost log-perplexity won back; worked out from `models` where it is None.
        config: the resolved config of the run, JSON-able.
        scores: the sums of the score file (`chopjax.score.file`).
        pooled: by axis, the scores in which training with masks ended (DimCHOP).
        search: the search over sizes.
        removal: losses without layers.
    """

    source: str
    teacher: str = ""
    plan: Plan | None = None
    metrics: Sequence[Mapping[str, Any]] = ()
    models: Mapping[str, ModelFigures] = dataclasses.field(default_factory=dict)
    samples: Sequence[Mapping[str, str]] = ()
    tokens: int | None = None
    seconds: float | None = None
    length: int | None = None
    gap_closed: float | None = None
    config: Mapping[str, Any] | None = None
    scores: Mapping[str, Float[np.ndarray, "half *rest"]] = dataclasses.field(default_factory=dict)
    pooled: Mapping[str, Float[np.ndarray, "..."]] = dataclasses.field(default_factory=dict)
    search: Search | None = None
    removal: Removal | None = None

    def columns(self) -> dict[str, ModelFigures]:
        """The models that have figures, in the order in which tables show them."""
        return {name: self.models[name] for name in figures.COLUMNS if name in self.models}

    def trained(self) -> int | None:
        """Tokens that the student was trained on, if it is known."""
        logged = (words.number(line.get("tokens")) for line in reversed(self.metrics))
        return self.tokens or next((int(tokens) for tokens in logged if tokens > 0), None)

    def closed(self) -> float | None:
        """The share of the log-perplexity gap that healing closed, if it is known."""
        if self.gap_closed is not None:
            return self.gap_closed
        perplexities = (self.models.get(name, ModelFigures()).perplexity for name in ("teacher", "chopped", "healed"))
        return figures.gap_closed(*perplexities)


def headline(run: Run) -> str:
    """The outcome in one sentence, as far as it is known."""
    size = _student_size(run)
    subject = f"{short_name(run.source)}{size}"
    clauses = ", ".join(clause for clause in (_size(run), _recovery(run)) if clause)
    if not clauses and size:
        return subject
    return f"{subject}: {clauses or 'nothing measured yet'}"


def short_name(source: str) -> str:
    """The last part of a path or hub id."""
    return source.rstrip("/").rpartition("/")[2] or source


def _parameters(run: Run) -> tuple[int | None, int | None]:
    """Parameters of the source and of the student."""
    models = run.models
    # A teacher that is another model says nothing about the size of the source.
    own_teacher = run.teacher in ("", run.source)
    before = models.get("source") or (models.get("teacher") if own_teacher else None) or ModelFigures()
    after = models.get("healed") or models.get("chopped") or ModelFigures()
    return before.parameters, after.parameters


def _student_size(run: Run) -> str:
    after = _parameters(run)[1]
    return f" → {words.scaled(after)} parameters" if after else ""


def _size(run: Run) -> str:
    before, after = _parameters(run)
    if not before or not after:
        return ""
    if after == before:
        return "the same size"
    word = "smaller" if after < before else "larger"
    return f"{words.percent(abs(before - after) / before)} {word}"


def _recovery(run: Run) -> str:
    tokens = run.trained()
    within = f" in {words.scaled(tokens)} tokens" if tokens else ""
    share = run.closed()
    if share is None:
        return f"trained on {words.scaled(tokens)} tokens" if tokens else ""
    if share <= 0:
        return f"none of the lost log-perplexity recovered{within}"
    if share >= 1:
        return f"all of the lost log-perplexity recovered{within}"
    return f"{words.percent(share)} of the lost log-perplexity recovered{within}"
