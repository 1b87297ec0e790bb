"""Conversations of a source, rendered by the tokenizer's chat template."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from chopjax.data.answers import Span, answer_spans
from chopjax.data.config import FOR_TEMPLATE, NOT_USED, TextSource
from chopjax.data.messages import ASSISTANT, NEVER_LEARNT, THOUGHTS, Turn, read_turns
from chopjax.data.template import ChatTemplate, Message
from chopjax.data.text import checked_text, records
from chopjax.data.tool_calls import forms, read_objects
from chopjax.errors import UserError

# Fields of messages that only tie calls to results; most templates have no use for them.
_TIES = ("id", "tool_call_id")
_RESERVED = ("messages", "tools", "documents", "chat_template", "add_generation_prompt")


Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Chat:
    """A conversation, or a prompt with its completion, as text.

    Attributes:
        text: all of it.
        answers: the characters that are to be predicted.
        bounded: whether it is plain text, which the tokenizer's BOS and EOS go around.
        tools: whether it was rendered with tools.
    """

    text: str
    answers: tuple[Span, ...]
    bounded: bool = False
    tools: bool = False


@dataclasses.dataclass
class Notes:
    """Reports each part of a source that is not used, once.

    Attributes:
        say: takes the lines.
        label: the source's name.
    """

    say: Callable[[str], None]
    label: str
    _seen: set[str] = dataclasses.field(default_factory=set)

    def once(self, key: str, line: str) -> None:
        """Reports `line` after the source's name, the first time that `key` is given."""
        if key not in self._seen:
            self._seen.add(key)
            self.say(f"{self.label}: {line}")


def conversations(source: TextSource, template: ChatTemplate | None, notes: Notes | None = None) -> Iterator[Chat]:
    """The conversations, or prompts with completions, that hold any text, in an order that depends on the source alone.

    Args:
        source: with `messages`, or `prompt` and `completion`.
        template: the chat template; None is enough for prompts and completions that are plain text.
        notes: takes what is not used of the source.

    Raises:
        UserError: by file and record, what cannot be read, is no conversation, or is refused by the template.
    """
    notes = notes or Notes(lambda line: None, source.label)
    read = _completion if source.prompt else _conversation
    found = (read(record, source, template, notes, where) for where, record in records(source))
    return itertools.islice((chat for chat in found if chat.text), source.max_documents or None)


def _conversation(record: Record, source: TextSource, template: ChatTemplate | None, notes: Notes, where: str) -> Chat:
    return _rendered(
        record, read_turns(record[source.messages], source.messages, where), source, template, notes, where
    )


def _completion(record: Record, source: TextSource, template: ChatTemplate | None, notes: Notes, where: str) -> Chat:
    """A prompt and its completion: both text, or both messages, of which those of the completion alone are learnt."""
    prompt, completion = (record[field] for field in source.fields)
    if isinstance(prompt, list) != isinstance(completion, list) and None not in (prompt, completion):
        kinds = " and ".join("messages" if isinstance(value, list) else "text" for value in (prompt, completion))
        raise UserError(f"{where}: prompt and completion are {kinds}; both must be text, or both lists of messages")
    if isinstance(prompt, list) or isinstance(completion, list):
        before, after = (read_turns(record[field], field, where, source.setting) for field in source.fields)
        before = [dataclasses.replace(turn, learnt=False) for turn in before]
        return _rendered(record, before + after, source, template, notes, where)
    _note_record(record, notes)
    for name in FOR_TEMPLATE:
        if record.get(name):
            notes.once(name, f"the records' field {name!r} is not used: the prompts are plain text")
    start, rest = (checked_text(record[field], field, where, source.setting) for field in source.fields)
    return Chat(start + rest, ((len(start), len(start) + len(rest)),), bounded=True)


def _rendered(
    record: Record,
    turns: Sequence[Turn],
    source: TextSource,
    template: ChatTemplate | None,
    notes: Notes,
    where: str,
) -> Chat:
    if not turns:
        return Chat("", ())
    if template is None:
        raise UserError(f"{where}: holds messages, but the tokenizer has no chat template; give the prompt as text")
    given = _given(record, template, notes, where)
    _note_record(record, notes)
    _note_messages(turns, given, template, notes)
    learnt = [turn.learnt is not False and turn.message["role"] == ASSISTANT for turn in turns]
    errors: list[UserError] = []
    for messages in forms([turn.message for turn in turns]):
        try:
            text = template.render(messages, False, given)
            _check_none(text, messages, template, given)
            answers = answer_spans(
                messages, text, lambda some, begin: template.render(some, begin, given), template.ends, learnt
            )
        except UserError as error:
            errors.append(error)
            continue
        return Chat(checked_text(text, source.fields[0], where, source.setting), answers, tools="tools" in given)
    reason = errors[:2][-1]  # of the form that most templates take
    raise UserError(f"{where}: {reason}") from reason


def _check_none(text: str, messages: Sequence[Message], template: ChatTemplate, given: Mapping[str, Any]) -> None:
    """Refuses a text in which the template wrote the word None for content that is missing."""
    if all(message.get("content") is not None for message in messages) or "None" not in text:
        return
    filled = [{**message, "content": message.get("content") or ""} for message in messages]
    if text.count("None") > template.render(filled, False, given).count("None"):
        raise UserError("the chat template writes None for content that is missing; give the message empty content")


def _given(record: Record, template: ChatTemplate, notes: Notes, where: str) -> dict[str, Any]:
    """The record's other inputs of the template: tools, documents and variables."""
    given = {}
    for name in ("tools", "documents"):
        if (found := read_objects(record.get(name), f"{where}: {name}")) is not None:
            given[name] = found
    variables = record.get("chat_template_kwargs") or {}
    if not isinstance(variables, dict) or any(name in _RESERVED for name in variables):
        raise UserError(
            f"{where}: chat_template_kwargs must be an object of variables of the template, without "
            f"{', '.join(_RESERVED)}"
        )
    for name in (*given, *variables):
        if not template.mentions(name, given):
            notes.once(name, f"the records' {name!r} is not used: the chat template does not read it")
    return given | variables


def _note_record(record: Record, notes: Notes) -> None:
    for name in NOT_USED:
        if record.get(name) is not None:
            how = {"functions": "name it tools", "system": "make it the first message"}.get(name, "mark the messages")
            notes.once(f"record {name}", f"the records' field {name!r} is not used; to use it, {how}")


def _note_messages(turns: Sequence[Turn], given: Mapping[str, Any], template: ChatTemplate, notes: Notes) -> None:
    thoughts = any(template.mentions(name, given) for name in THOUGHTS)
    for turn in turns:
        role = turn.message["role"]
        if role != ASSISTANT and role not in NEVER_LEARNT:
            notes.once(f"role {role}", f"the role {role!r} is not the assistant's, so its messages are not learnt")
        if turn.learnt and role != ASSISTANT:
            notes.once(f"learnt {role}", f"messages of the {role} are marked to be learnt; only the assistant's are")
        for name in turn.message:
            if name in ("role", "content", "tool_calls", *_TIES) or (name in THOUGHTS and thoughts):
                continue
            if not template.mentions(name, given):
                line = f"the messages' field {name!r} is not used: the chat template does not read it"
                notes.once(f"message {name}", line)
