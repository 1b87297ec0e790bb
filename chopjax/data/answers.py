"""Where a rendered conversation holds the assistant's answers.

A template may strip an answer, leave out what was thought before it, or write earlier answers otherwise than the last.
So an answer is not looked for by its words: the conversation is rendered again with a mark in its place. Where all
around the mark is as it was, what stands there is the answer as the model reads it.
"""

import os.path
import re
from collections.abc import Sequence

from chopjax.data.template import Message, Render
from chopjax.errors import UserError

ASSISTANT = "assistant"
Span = tuple[int, int]  # of characters: the first, and one past the last
_PRIVATE = range(0xE000, 0xF900)  # characters that Unicode leaves to private use


def answer_spans(messages: Sequence[Message], text: str, render: Render, ends: re.Pattern[str]) -> tuple[Span, ...]:
    """The characters of `text` that the model is to predict: the assistant's content and the token that ends its turn.

    The end is the first special token that the template writes after the content as part of the same message, with
    what stands between the two (a space, a tool call). White space after it, and the next message's head, belong to
    the template. An answer that the template leaves out of the text has no span.

    Args:
        messages: the conversation; the content of the assistant's messages is text.
        text: the whole conversation, rendered.
        render: the template.
        ends: matches a special token.

    Raises:
        UserError: the template rewrites an answer, so that its place cannot be told.
    """
    mark = next(chr(code) for code in _PRIVATE if chr(code) not in text)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        marked = [*messages[:index], {**message, "content": mark}, *messages[index + 1 :]]
        around = render(marked, False)
        if around == text:
            continue  # the template leaves this answer out
        start, stop = _content(messages, index, text, around.split(mark), render)
        last = index + 1 == len(messages)
        tail = (around if last else render(marked[: index + 1], False)).partition(mark)[2]
        # What follows both here and where the conversation ends with this answer is the message's own.
        end = ends.search(os.path.commonprefix([tail, text[stop:]]))
        spans.append((start, stop + end.end() if end else stop))
    return tuple(spans)


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
    raise UserError(
        f"the chat template rewrites the answer in message {index + 1}, so that its place in the text cannot be told; "
        "use another template, or render the conversation to plain text"
    )
