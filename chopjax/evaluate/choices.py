"""Accuracy on multiple choice: which continuation of a context the model finds most likely.

Boundaries of tokens, truncation and both accuracies are those of lm-evaluation-harness (`multiple_choice` tasks), so
that figures on the same items agree.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from chopjax.data.tokenize import Tokenizer
from chopjax.errors import UserError
from chopjax.evaluate.requests import encode, log_likelihoods, pack
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Params


@dataclasses.dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        contexts: what stands before each choice: the same text, or one of its own (the partial evaluation of
            Winogrande puts the options into the context and scores the rest of the sentence).
        choices: the continuations, of which one is right.
        answer: index of that one.
    """

    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    answer: int


@dataclasses.dataclass(frozen=True)
class ChoiceScores:
    """Shares of items whose right choice is the most likely one; ties go to the first, and NaN is wrong.

    Attributes:
        accuracy: by log-likelihood, `acc` of lm-evaluation-harness.
        accuracy_norm: by log-likelihood over the choice's number of characters, `acc_norm`.
        items: number of items.
    """

    accuracy: float
    accuracy_norm: float
    items: int


def load_items(file: str | pathlib.Path, limit: int = 0) -> list[Item]:
    """Reads JSON lines `{"context": "...", "choices": ["...", "..."], "answer": 0}`; at most `limit`, 0 for all.

    `context` may also be a list, with one text for each choice.

    Raises:
        UserError: names the file, the line and the field.
    """
    file = pathlib.Path(file)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    items = [_item(line, f"{file}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise UserError(f'{file}: holds no item; each line is {{"context": ..., "choices": [...], "answer": 0}}')
    return items[: limit or None]


def choice_accuracy(
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    batch: int,
    length: int,
    *,
    delimiter: str = " ",
    **options: Any,
) -> ChoiceScores:
    """How often the right choice is the most likely continuation of its context.

    Args:
        config: the architecture of `params`.
        params: parameters in the compute dtype, sharded in any way.
        tokenizer: the model's.
        items: the questions.
        batch: rows in one forward pass, over all devices.
        length: tokens of a row. Questions are packed into rows, so that there is a single shape; longer ones lose the
            beginning of their context.
        delimiter: put between context and choice where neither has white space there.
        options: `chunk`, `vocab_tokens` and `constrain` of `chopjax.evaluate.perplexity.evaluate_rows`.

    Raises:
        UserError: a choice that is longer than a row, or has no token of its own; a tokenizer of another model.
    """
    requests = encode(tokenizer, pairs(items, delimiter), length)
    found = log_likelihoods(config, params, pack(requests, batch, length), len(requests), **options)
    return accuracy(items, found)


def choices_metric(
    tokenizer: Tokenizer,
    file: str | pathlib.Path,
    batch: int,
    length: int,
    *,
    normalised: bool = False,
    limit: int = 0,
    delimiter: str = " ",
    **options: Any,
) -> Callable[[ModelConfig, Params], float]:
    """A `chopjax.score.metric.Metric`: 1 - accuracy on the items of `file`, which are tokenised once.

    Args:
        normalised: whether it is 1 - `accuracy_norm` instead.
        limit: use so many items at most; 0 for all.

    The rest is as in `choice_accuracy`.

    Raises:
        UserError: see `load_items` and `choice_accuracy`.
    """
    items = load_items(file, limit)
    requests = encode(tokenizer, pairs(items, delimiter), length)
    batches = pack(requests, batch, length)

    def error(config: ModelConfig, params: Params) -> float:
        scores = accuracy(items, log_likelihoods(config, params, batches, len(requests), **options))
        return 1 - (scores.accuracy_norm if normalised else scores.accuracy)

    return error


def pairs(items: Sequence[Item], delimiter: str = " ") -> list[tuple[str, str]]:
    """Context and continuation of every choice of every item, with `delimiter` where white space is missing."""
    return [
        (context, choice if context[-1:].isspace() or choice[:1].isspace() else delimiter + choice)
        for item in items
        for context, choice in zip(item.contexts, item.choices, strict=True)
    ]


def accuracy(items: Sequence[Item], log_likelihoods: Float[np.ndarray, "requests"]) -> ChoiceScores:
    """The accuracies, from the log-likelihoods of all choices of all items in their order."""
    right = np.zeros(2)
    at = 0
    for item in items:
        found = log_likelihoods[at : at + len(item.choices)]
        at += len(item.choices)
        if np.isfinite(found).all():
            characters = np.array([len(choice) for choice in item.choices])
            right += [found.argmax() == item.answer, (found / characters).argmax() == item.answer]
    by_sum, by_character = (right / len(items)).tolist()
    return ChoiceScores(by_sum, by_character, len(items))


def _item(line: str, where: str) -> Item:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON object is wanted, not {type(record).__name__}")
    missing = [name for name in ("context", "choices", "answer") if name not in record]
    if missing:
        raise UserError(f"{where}: no field {missing[0]!r}; an item has context, choices and answer")
    choices, context, answer = record["choices"], record["context"], record["answer"]
    if not _texts(choices) or len(choices) < 2 or not all(choices):
        raise UserError(f"{where}: choices must be two or more texts, none of them empty")
    contexts = [context] * len(choices) if isinstance(context, str) else context
    if not _texts(contexts) or len(contexts) != len(choices):
        raise UserError(f"{where}: context must be a text, or a list with one text for each of the choices")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise UserError(f"{where}: answer is {answer!r}; give the index of a choice, 0 to {len(choices) - 1}")
    return Item(tuple(contexts), tuple(choices), answer)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
