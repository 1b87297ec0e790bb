import re

import jinja2.sandbox
import pytest
from data.chats import CHATML, STRIPPED, THINKING, UNENDED, turns

from chopjax.data.answers import answer_spans
from chopjax.errors import UserError

ENDS = re.compile(r"<\|start\|>|<\|end\|>|<s>|</s>")
R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<U>' + m.content }}{% else %}"
    "{{ '<A>' + m.content.split('</think>')[-1] + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<A><think>\n' }}{% endif %}"
)


def answers(template: str, messages: list[dict], ends: re.Pattern[str] = ENDS) -> list[str]:
    """The texts that are to be predicted."""
    environment = jinja2.sandbox.SandboxedEnvironment()
    environment.globals["raise_exception"] = None
    compiled = environment.from_string(template)

    def render(some, begin):
        return compiled.render(messages=some, add_generation_prompt=begin, bos_token="<s>", eos_token="</s>")

    text = render(messages, False)
    return [text[start:stop] for start, stop in answer_spans(messages, text, render, ends)]


@pytest.mark.parametrize(
    ("template", "contents", "expected"),
    [
        (CHATML, ["Q", "A"], ["A<|end|>"]),
        (CHATML, ["Q", "A", "Q", "A\n\nB", "Q"], ["A<|end|>", "A\n\nB<|end|>"]),
        # Contents that look like each other, like the template's own words, or like nothing at all.
        (CHATML, ["A", "A", "A", "A"], ["A<|end|>", "A<|end|>"]),
        (CHATML, ["", "", "", "<|end|>\n"], ["<|end|>", "<|end|>\n<|end|>"]),
        (CHATML, ["Q", "assistant\n<|start|>assistant\n"], ["assistant\n<|start|>assistant\n<|end|>"]),
        (CHATML, ["\ue000", "\ue001 \ue000"], ["\ue001 \ue000<|end|>"]),
        # No head that asks for an answer; stripped; a space before the end of a turn.
        (STRIPPED, [" Q ", "\n A ", "Q", "B"], ["A </s>", "B </s>"]),
        # No token ends a turn.
        (UNENDED, ["Q", "A", "Q", "B"], ["A", "B"]),
        # Thoughts are in the last answer alone, so the text of a conversation is not how that of a longer one begins.
        (
            THINKING,
            ["Q", "<think>\nx\n</think>\n\nA", "Q", "<think>\ny\n</think>\n\nB"],
            ["A<|end|>", "<think>\ny\n</think>\n\nB<|end|>"],
        ),
        # The same taken apart and written otherwise than it was given: all that follows the assistant's head.
        (THINKING, ["Q", "<think>y</think>B"], ["<think>\ny\n</think>\n\nB<|end|>"]),
        # Empty thoughts are the template's, not the answer's.
        (THINKING, ["Q", "B"], ["B<|end|>"]),
        # The head that asks for an answer is not how answers begin.
        (R1, ["Q", "<think>x</think>A", "Q", "<think>y</think>B"], ["A</s>", "B</s>"]),
    ],
)
def test_what_is_predicted(template, contents, expected):
    assert answers(template, turns(*contents)) == expected


def test_other_roles_are_never_predicted():
    messages = turns("Q", "A", system="S")
    messages[2:2] = [{"role": "tool", "content": "A"}]
    assert answers(CHATML, messages) == ["A<|end|>"]


def test_the_head_of_the_next_message_ends_no_turn():
    template = UNENDED + "{{ eos_token }}"
    assert answers(template, turns("Q", "A", "Q", "B")) == ["A", "B\n\n</s>"]
    zephyr = "{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '\n' }}{% endfor %}"
    assert answers(zephyr, turns("Q", "A", "Q", "B")) == ["A", "B"]


def test_a_tool_call_is_predicted_up_to_the_end_of_the_turn():
    template = (
        "{% for m in messages %}{{ '<|start|>' + m.content }}{% for c in m.tool_calls or [] %}{{ '<call>' + c }}"
        "{% endfor %}{{ '<|end|>\n' }}{% endfor %}"
    )
    messages = turns("Q", "A")
    messages[1]["tool_calls"] = ["f(1)"]
    assert answers(template, messages) == ["A<call>f(1)<|end|>"]


def test_an_answer_that_is_left_out_has_no_span():
    template = (
        "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content + '<|end|>' }}{% endif %}"
        "{% endfor %}"
    )
    assert answers(template, turns("Q", "A", "Q", "B")) == ["B<|end|>"]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content + '|' + m.content }}{% endfor %}",
        "{{ messages | join('', 'content') | length }}{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    ],
)
def test_an_answer_without_a_place_is_refused(template):
    with pytest.raises(UserError, match="the chat template rewrites the answer in message 2"):
        answers(template, turns("Q", "an answer"))
