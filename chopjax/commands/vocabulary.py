"""Trimming the vocabulary: which words stay, and what follows from it for the files beside the weights."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from chopjax.chop.edits import Refit
from chopjax.chop.plan import Plan
from chopjax.commands.run import Run
from chopjax.data.tokenize import load_tokenizer
from chopjax.errors import UserError
from chopjax.hf import trimmed
from chopjax.hf.checkpoint import Checkpoint
from chopjax.hf.source_files import CONFIG
from chopjax.hf.token_ids import renumber_ids, renumbering
from chopjax.hf.vocabulary import choose_words, trims


@dataclasses.dataclass(frozen=True)
class Trimming:
    """What a trimmed vocabulary changes beside the weights; nothing where no word of the tokenizer goes.

    Attributes:
        files: contents by name of small files that are not copied; None for one that is left out.
        ids: a config.json with the ids that belong to the new vocabulary.
        notes: what a user of the model should know.
    """

    files: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    ids: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda raw: raw
    notes: tuple[str, ...] = ()


def trimming(source: Checkpoint, plan: Plan) -> Trimming:
    """The tokenizer and the ids of a source, as they are after the plan.

    Raises:
        UserError: the tokenizer cannot be trimmed so.
    """
    kept = plan.kept.get("vocab")
    if kept is None:
        return Trimming()
    folder, vocab = source.folder, source.config.vocab
    words = load_tokenizer(folder).vocab if trimmed.has_tokenizer(folder) else len(kept)
    renumber = renumbering(kept, vocab)
    if not trims(kept, words):  # ids beyond the tokenizer's are named by other files all the same
        return Trimming(trimmed.rewrite_ids(folder, renumber), lambda raw: renumber_ids(raw, renumber, CONFIG))
    files = trimmed.rewrite_tokenizer(folder, kept, vocab)
    left_out = sorted(name for name, text in files.items() if text is None)
    notes = [f"the tokenizer has {len(kept):,} of the source's {words:,} tokens, with ids of their own"]
    notes += [f"{', '.join(left_out)} left out: it holds the source's ids"] if left_out else []

    def ids(raw: Mapping[str, Any]) -> Mapping[str, Any]:
        return renumber_ids(raw, renumber, CONFIG) | source.family.assumed_ids(raw, renumber)

    return Trimming(files, ids, tuple(notes))


def kept_words(run: Run, counts: Int[np.ndarray, "vocab"], size: int) -> Int[np.ndarray, "kept"]:
    """The rows of the embedding table to keep: the first, if no word of the tokenizer has to go.

    Args:
        run: its source's tokenizer and configs say what must stay.
        counts: how often each id occurs in the calibration text, int64.
        size: `plan.vocab`, rows to keep.

    Returns:
        Ascending ids, int32: `size` of them, or where the tokenizer has fewer tokens (some ids name none) all of these.

    Raises:
        UserError: more must stay, or the tokenizer cannot be trimmed.
    """
    folder = run.source.folder
    if size >= run.tokens:
        return np.arange(size, dtype=np.int32)
    named = trimmed.named_ids(folder, run.source.config.vocab)
    ends = run.tokenizer.token_id(run.settings.data.eos_token) if run.settings.data.eos_token else None
    if ends is not None:
        named.add(ends)
    kept = choose_words(counts, trimmed.read_tokenizer(folder), size, named)
    if len(kept) < size:
        run.say(f"plan: plan.vocab: the tokenizer has only {len(kept)} tokens, so {len(kept)} rows stay, not {size}")
    return kept


def check(run: Run, plan: Plan) -> None:
    """Refuses a vocabulary that the tokenizer, the data or the steps of the run cannot follow.

    Raises:
        UserError: names the field or file, and the mend.
    """
    words, kept = run.tokens, plan.kept.get("vocab")
    if not words and kept is not None and trims(kept, len(kept)):
        raise UserError(
            f"plan.file: kept.vocab gives tokens new ids, but {run.source.folder} has no tokenizer that could follow; "
            "put its tokenizer.json there, or keep the first rows"
        )
    if run.source.config.vocab < words:
        raise UserError(
            f"{run.source.folder}: the tokenizer has ids up to {words - 1}, but the model has only "
            f"{run.source.config.vocab} rows of vocabulary; take the tokens beyond out of tokenizer.json"
        )
    if kept is None or not trims(kept, words):
        trimming(run.source, plan).ids(run.source.raw_config)
        _check_unlisted(run, kept, words)
        return
    if run.settings.train.steps_before_chop:
        raise UserError(
            "train.steps_before_chop: rows before and after a trimmed vocabulary would differ; set it to 0, or keep "
            f"plan.vocab at {words} or more"
        )
    if not run.settings.data.sources:
        raise UserError(
            "data.sources is empty, but a trimmed vocabulary needs the text itself, to tokenise it anew; name the text"
        )
    if any(isinstance(edit, Refit) for edit in plan.edits):
        raise UserError(
            "plan.refit: the fit compares the chopped model with the source on the same tokens, which a trimmed "
            "vocabulary has not; trim it in one of two rounds, and refit in the other"
        )
    trimming(run.source, plan).ids(run.source.raw_config)
    _check_unlisted(run, kept, len(kept))


def _check_unlisted(run: Run, kept: Int[np.ndarray, "kept"] | None, tokens: int) -> None:
    """Refuses a cut that leaves no rows for tokens that transformers adds to the tokenizer when it loads it.

    Args:
        run: its source's tokenizer settings may name tokens that its tokenizer.json lacks.
        kept: rows of the vocabulary that stay.
        tokens: how many of them the tokenizer.json of the student names.
    """
    if kept is None or not (unlisted := trimmed.unlisted(run.source.folder)):
        return
    had_rows = run.tokens + len(unlisted) <= run.source.config.vocab
    if had_rows and tokens + len(unlisted) > len(kept):
        raise UserError(
            f"{run.source.folder}: the tokenizer's settings name {unlisted[0]!r}, which tokenizer.json lacks, so "
            f"transformers gives it an id for which plan.vocab leaves no row; set plan.vocab to "
            f"{run.tokens + len(unlisted)} or more, or save the tokenizer again with transformers, which adds it"
        )
