"""Conversations of a source, rendered by the tokenizer's chat template."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from chopjax.data.answers import ASSISTANT, Span, answer_spans
from chopjax.data.config import TextSource
from chopjax.data.template import ChatTemplate
from chopjax.data.text import checked_text, records
from chopjax.errors import UserError

# ShareGPT's words for roles; others go to the template as they are.
ROLES = {"human": "user", "gpt": ASSISTANT}


@dataclasses.dataclass(frozen=True)
class Chat:
    """A conversation as text.

    Attributes:
        text: all of it.
        answers: the characters that are to be predicted.
    """

    text: str
    answers: tuple[Span, ...]


def conversations(source: TextSource, template: ChatTemplate) -> Iterator[Chat]:
    """The conversations of a source that hold any message, in an order that depends on nothing but the source.

    Raises:
        UserError: by file and record, what cannot be read, is no conversation, or is refused by the template.
    """
    found = (_chat(read_messages(value, source.messages, where), template, where) for where, value in records(source))
    return itertools.islice((chat for chat in found if chat.text), source.max_documents or None)


def _chat(messages: list[dict[str, Any]], template: ChatTemplate, where: str) -> Chat:
    if not messages:
        return Chat("", ())
    try:
        text = template.render(messages, False)
        answers = answer_spans(messages, text, template.render, template.ends)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return Chat(checked_text(text, "messages", where), answers)


def read_messages(value: Any, field: str, where: str) -> list[dict[str, Any]]:
    """A conversation as messages of `role` and `content`, and whatever else the template may read.

    `{from, value}` becomes `{role, content}`, with `human` and `gpt` for the user and the assistant. Fields that are
    null are left out, as Parquet has them in every message; a null for a conversation is an empty one.

    Raises:
        UserError: it is no list of messages, or an answer is no text.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise UserError(f"{where}: field {field!r} is {type(value).__name__}, not a list of messages; set messages")
    return [_message(entry, f"{where}: {field}[{index}]") for index, entry in enumerate(value)]


def _message(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {type(entry).__name__}, not an object of role and content")
    message = {name: value for name, value in entry.items() if value is not None}
    if "role" not in message and "from" in message:
        role = message.pop("from")
        message = {"role": ROLES.get(role, role) if isinstance(role, str) else role, **message}
        message["content"] = message.pop("value", None)
    if not isinstance(message.get("role"), str):
        there = ", ".join(map(str, entry)) or "nothing"
        raise UserError(f"{where} has no role; there are {there}; messages have role and content, or from and value")
    message.setdefault("content", None)
    if message["role"] == ASSISTANT and not isinstance(message["content"], str):
        raise UserError(f"{where}: content of the assistant is {type(message['content']).__name__}, not text")
    return message
