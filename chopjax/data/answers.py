"""Where a rendered conversation holds the assistant's answers.

A template may strip an answer, leave out what was thought before it, or write earlier answers otherwise than the last.
So an answer is not looked for by its words: the conversation is rendered again with a mark in its place. Where all
around the mark is as it was, what stands there is the answer as the model reads it.
"""

import os.path
import re
from collections.abc import Collection, Sequence
from typing import Any

from chopjax.data.messages import ASSISTANT, THOUGHTS
from chopjax.data.template import Message, Render
from chopjax.errors import UserError

CALLS = "tool_calls"
Span = tuple[int, int]  # of characters: the first, and one past the last
_PRIVATE = range(0xE000, 0xF900)  # characters that Unicode leaves to private use


def answer_spans(
    messages: Sequence[Message],
    text: str,
    render: Render,
    ends: re.Pattern[str],
    learnt: Sequence[bool] | None = None,
) -> tuple[Span, ...]:
    """The characters of `text` that the model is to predict: the assistant's content and the token that ends its turn.

    The end is the first special token that the template writes after the content as part of the same message, with
    what stands between the two, such as a space. White space after it, and the next message's head, belong to the
    template. An answer that the template leaves out of the text has no span. Of a message with tool calls, or with
    thoughts in a field of their own, all that the template writes for them is predicted too.

    Args:
        messages: the conversation; the content of the assistant's messages is text.
        text: the whole conversation, rendered.
        render: the template.
        ends: matches a special token.
        learnt: which messages are predicted; by default those of the assistant.

    Raises:
        UserError: the template rewrites an answer, so that its place cannot be told, or leaves out tool calls.
    """
    mark = next(chr(code) for code in _PRIVATE if chr(code) not in text)
    found = []
    for index, message in enumerate(messages):
        _check_calls(messages, index, text, render)
        if message["role"] == ASSISTANT if learnt is None else learnt[index]:
            span_of = _turn_span if any(name in message for name in (CALLS, *THOUGHTS)) else _content_span
            found.append(span_of(messages, index, text, render, ends, mark))
    return tuple(span for span in found if span)


def _content_span(
    messages: Sequence[Message], index: int, text: str, render: Render, ends: re.Pattern[str], mark: str
) -> Span | None:
    """The content of one message, and what ends it; None if the template leaves it out."""
    marked = _with(messages, index, {**messages[index], "content": mark})
    around = render(marked, False)
    if around == text:
        return None
    start, stop = _content(messages, index, text, around.split(mark), render)
    tail = around if index + 1 == len(messages) else render(marked[: index + 1], False)
    return start, stop + _end(tail.partition(mark)[2], text[stop:], ends)


def _end(tail: str, rest: str, ends: re.Pattern[str]) -> int:
    """How many characters of `rest`, which follows a message, end it; `tail` follows it where nothing else does."""
    # What follows both here and where the conversation ends with this answer is the message's own.
    end = ends.search(os.path.commonprefix([tail, rest]))
    return end.end() if end else 0


def _turn_span(
    messages: Sequence[Message], index: int, text: str, render: Render, ends: re.Pattern[str], mark: str
) -> Span | None:
    """All that the template writes for a message with tool calls or thoughts; None if it leaves the message out."""
    message = messages[index]
    head = _head(messages[:index], text, render)
    # The same message with other content alone: what differs is this message's own.
    marked = _with(messages, index, {**_without(message, [CALLS, *THOUGHTS]), "content": mark})
    around = _attempt(render, marked, False)
    if around == text:
        return None
    parts = (around or "").split(mark)
    if len(parts) == 2:
        before, after = parts
        start = len(os.path.commonprefix([before, text]))
        stop = len(text) - len(os.path.commonprefix([after[::-1], text[start:][::-1]]))
        if not ends.search(before[start:]):  # else it is something else that differs, before this message
            if start < len(before) and head is not None and len(head) <= start:
                start = len(head)  # the message itself begins as the template would begin one without thoughts
            cut = [match.end() for match in ends.finditer(text, start) if match.start() < stop < match.end()]
            if cut:  # a turn with calls ends with another token than one without
                return start, cut[0]
            tail = around if index + 1 == len(messages) else _attempt(render, marked[: index + 1], False)
            return start, stop + _end((tail or around or "").partition(mark)[2], text[stop:], ends)
    whole = _attempt(render, messages[: index + 1], False)
    if head is None or whole is None or not text.startswith(whole):
        raise _rewritten(index)
    last = [match.end() for match in ends.finditer(whole, len(head))]
    return len(head), last[-1] if last else len(whole.rstrip())


def _check_calls(messages: Sequence[Message], index: int, text: str, render: Render) -> None:
    """Refuses a template that writes nothing for the tool calls of a message."""
    message = messages[index]
    if CALLS in message and _attempt(render, _with(messages, index, _without(message, [CALLS])), False) == text:
        raise UserError(
            f"the chat template leaves out the tool calls of message {index + 1}; use a template that writes them, or "
            "leave the record out"
        )


def _head(messages: Sequence[Message], text: str, render: Render) -> str | None:
    """What asks for an answer to these messages; None if the template has no such thing, or `text` begins otherwise."""
    found = _attempt(render, messages, True) if messages else None
    asks = found is not None and text.startswith(found) and found != _attempt(render, messages, False)
    return found if asks else None


def _attempt(render: Render, messages: Sequence[Message], begin: bool) -> str | None:
    """The messages rendered, or None if the template refuses them: a part of a conversation need not be one."""
    try:
        return render(messages, begin)
    except UserError:
        return None


def _rewritten(index: int) -> UserError:
    return UserError(
        f"the chat template rewrites the answer in message {index + 1}, so that its place in the text cannot be told; "
        "use another template, or render the conversation to plain text"
    )


def _with(messages: Sequence[Message], index: int, message: Message) -> list[Message]:
    return [*messages[:index], message, *messages[index + 1 :]]


def _without(message: Message, names: Collection[str]) -> dict[str, Any]:
    """A message without some fields; content that it lacks is empty."""
    return {"content": "", **{name: value for name, value in message.items() if name not in names}}


def _content(messages: Sequence[Message], index: int, text: str, around: Sequence[str], render: Render) -> Span:
    """Where the content of one answer stands; `around` is what stands around its mark."""
    if len(around) == 2:
        before, after = around
        if text.startswith(before) and text.endswith(after) and len(before) + len(after) <= len(text):
            return len(before), len(text) - len(after)
        # The template takes the content apart, say into thoughts and words. It may still put it together unchanged.
        start = len(os.path.commonprefix([before, text]))
        stop = len(text) - len(os.path.commonprefix([after[::-1], text[start:][::-1]]))
        content = messages[index]["content"].strip()
        found = text.find(content, max(0, stop - len(content)), start + len(content))
        if content and found >= 0:
            return found, found + len(content)
        # Or else it is all that follows the head which asks for an answer.
        if text.endswith(after) and index:
            head = render(messages[:index], True)
            if text.startswith(head) and len(head) <= start:
                return len(head), len(text) - len(after)
    raise _rewritten(index)
