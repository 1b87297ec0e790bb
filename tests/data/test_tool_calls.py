"""Conversations with tool calls, tools and thoughts: what is rendered, and what of it is predicted."""

import json
import pathlib

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import transformers
from data.chats import CHATML as OTHER_END
from data.chats import turns, with_template

from chopjax.data.chat import Chat, Notes, conversations
from chopjax.data.config import TextSource
from chopjax.data.template import load_template
from chopjax.data.tokenize import load_tokenizer
from chopjax.errors import UserError

CHATML = OTHER_END.replace("<|end|>", "</s>")
# As those of Qwen 3, Llama 3.1, Mistral and DeepSeek-R1, cut down to what concerns calls. `<s>` and `</s>` are special.
QWEN = (
    "{% if tools %}{{ '<s>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{ '</s>\n' }}{% endif %}"
    "{% for m in messages %}{% set c = m.content if m.content is string else '' %}"
    "{% if m.role == 'tool' %}{{ '<s>user\n<result>' + c + '</result></s>\n' }}{% else %}"
    "{{ '<s>' + m.role + '\n' }}{% if m.role == 'assistant' and (loop.last or m.reasoning_content) %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}{{ c }}"
    "{% for call in m.tool_calls or [] %}{% if c or not loop.first %}{{ '\n' }}{% endif %}"
    "{% set f = call.function or call %}"
    "{{ '<call>' + f.name + ' ' }}{{ f.arguments if f.arguments is string else f.arguments | tojson }}{{ '</call>' }}"
    "{% endfor %}{{ '</s>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{{ '<s>' + m.role + '\n\n' }}{% if 'tool_calls' in m %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('only one call at once') }}{% endif %}"
    "{{ {'name': m.tool_calls[0].function.name, 'parameters': m.tool_calls[0].function.arguments} | tojson }}"
    "{% else %}{{ m.content }}{% endif %}{{ '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n\n' }}{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<s>[INST]' + m.content + '[/INST]' }}"
    "{% elif m.role == 'tool' %}{{ '[RESULTS]' + m.content + '[/RESULTS]' }}{% elif m.tool_calls is defined %}"
    "{{ '<s>[CALLS]' }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{{ '</s>' }}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
)
R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<s>U' + m.content }}{% endif %}"
    "{% if m.role == 'assistant' and m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ '<s>A<calls>' + c.function.name + '\n' + c.function.arguments + '</calls>' }}{% endfor %}{{ '</s>' }}"
    "{% endif %}"
    "{% if m.role == 'assistant' and m.content is not none %}{{ '<s>A' + m.content + '</s>' }}{% endif %}"
    "{% if m.role == 'tool' %}{{ '<out>' + m.content + '</out>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>A<think>\n' }}{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
    "{{ raise_exception('no call') }}{% endif %}{{ '<s>' + m.role + ':' + m.content }}"
    "{{ m.tool_calls | tojson if m.tool_calls }}{{ '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
)
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "hill"}}}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


def asked(*, content: str | None = None, **fields: object) -> list[dict]:
    """A question, a call, its result and an answer."""
    call = {"role": "assistant", "content": content, "tool_calls": [CALL], **fields}
    return [turns("Q")[0], call, {"role": "tool", "content": "R"}, {"role": "assistant", "content": "A"}]


def read(folder: pathlib.Path, record: dict, lines: list[str] | None = None, **fields: str) -> Chat:
    path = folder / "chats.jsonl"
    path.write_text(json.dumps(record) + "\n")
    source = TextSource(path=str(path), **{"messages": "messages", **fields})
    notes = Notes((lines if lines is not None else []).append, "chats")
    (chat,) = conversations(source, load_template(folder, load_tokenizer(folder)), notes)
    return chat


def answers(chat: Chat) -> list[str]:
    return [chat.text[start:stop] for start, stop in chat.answers]


THOUGHT = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (QWEN, asked(), ['<call>look {"at": "hill"}</call></s>', "A</s>"]),
        (QWEN, asked(content="So:"), ['So:\n<call>look {"at": "hill"}</call></s>', "A</s>"]),
        (QWEN, asked()[:2], ['<call>look {"at": "hill"}</call></s>']),
        (
            QWEN,
            asked(tool_calls=[CALL, CALL]),
            ['<call>look {"at": "hill"}</call>\n<call>look {"at": "hill"}</call></s>', "A</s>"],
        ),
        # Thoughts that are a field of their own are learnt; empty ones are the template's.
        (
            QWEN,
            asked(reasoning_content="T"),
            ['<think>\nT\n</think>\n\n<call>look {"at": "hill"}</call></s>', "A</s>"],
        ),
        (
            QWEN,
            [turns("Q")[0], {"role": "assistant", "content": "A", "thinking": "T"}],
            ["<think>\nT\n</think>\n\nA</s>"],
        ),
        (LLAMA, asked(), ['{"name": "look", "parameters": {"at": "hill"}}</s>', "A</s>"]),
        # A call begins with a special token of its own, and no head asks for an answer.
        (MISTRAL, asked(), ['<s>[CALLS]{"name": "look", "arguments": {"at": "hill"}}</s>', " A</s>"]),
        # Arguments are joined to text, and null content tells a call alone.
        (R1, asked(), ['<calls>look\n{"at": "hill"}</calls></s>', "A</s>"]),
        # Without its call the conversation is refused.
        (STRICT, asked(), [json.dumps([CALL]) + "</s>", "A</s>"]),
    ],
)
def test_a_call_is_predicted(tokenizer_with, template, messages, expected):
    folder = with_template(tokenizer_with(), template)
    chat = read(folder, {"messages": messages})
    # What a message without a call begins with, a space, is the template's.
    assert [answer.lstrip(" ") for answer in answers(chat)] == [answer.lstrip(" ") for answer in expected]
    assert "None" not in chat.text


def test_the_text_is_that_of_transformers(tokenizer_with):
    folder = with_template(tokenizer_with(), QWEN)
    messages = [*asked(content="So:", reasoning_content="T"), *asked()]
    chat = read(folder, {"messages": messages, "tools": TOOLS})
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    assert chat.text == reference.apply_chat_template(messages, tools=TOOLS, tokenize=False)


@pytest.mark.parametrize(
    "call",
    [
        {"tool_calls": [{**CALL, "function": {"name": "look", "arguments": '{"at": "hill"}'}}]},
        {"tool_calls": json.dumps([CALL])},
        {"tool_calls": [json.dumps(CALL)]},
        {"tool_calls": CALL},
        {"tool_calls": [CALL["function"]]},
        {"tool_calls": None, "function_call": {"name": "look", "arguments": '{"at": "hill"}'}},
    ],
)
def test_the_forms_of_calls(tokenizer_with, call):
    folder = with_template(tokenizer_with(), QWEN)
    assert read(folder, {"messages": asked(**call)}).text == read(folder, {"messages": asked()}).text


def test_arguments_that_are_no_object_stay_text(tokenizer_with):
    folder = with_template(tokenizer_with(), QWEN)
    call = {"function": {"name": "look", "arguments": "at the hill"}}
    assert answers(read(folder, {"messages": asked(tool_calls=[call])}))[0] == "<call>look at the hill</call></s>"


def test_sharegpt(tokenizer_with):
    folder = with_template(tokenizer_with(), QWEN)
    messages = [
        {"from": "human", "value": "Q"},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": "R"},
        {"from": "gpt", "value": "A"},
    ]
    record = {"conversations": messages, "tools": json.dumps(TOOLS)}
    expected = read(folder, {"messages": asked(), "tools": TOOLS})
    assert read(folder, record, messages="conversations") == expected


def test_nulls_that_a_table_fills_in_are_no_arguments(tokenizer_with):
    folder = with_template(tokenizer_with(), QWEN)
    other = {"type": "function", "function": {"name": "go", "arguments": {"to": "water"}}}
    tools = [{"type": "function", "function": {"name": "look"}}]
    records = [{"messages": asked(), "tools": tools}, {"messages": asked(tool_calls=[other]), "tools": None}]
    parquet.write_table(arrow.Table.from_pylist(records), folder / "chats.parquet")
    source = TextSource(path=str(folder / "chats.parquet"), messages="messages")
    found = list(conversations(source, load_template(folder, load_tokenizer(folder))))
    assert found == [read(folder, record) for record in records]


def test_a_template_that_leaves_calls_out_is_refused(tokenizer_with):
    folder = with_template(tokenizer_with(), CHATML)
    said = r"chats.jsonl, line 1: the chat template leaves out the tool calls of message 2; use a template that writes"
    for messages in (asked(), asked(content="So:"), asked(content="So:", weight=0)):
        with pytest.raises(UserError, match=said):
            read(folder, {"messages": messages})


def test_none_is_never_written(tokenizer_with):
    template = (
        "{% for m in messages %}{{ m.get('content') }}{{ m.tool_calls | tojson if m.tool_calls }}</s>{% endfor %}"
    )
    chat = read(with_template(tokenizer_with(), template), {"messages": asked()})
    assert chat.text == "Q</s>" + json.dumps([CALL]) + "</s>R</s>A</s>"
    assert answers(chat) == [json.dumps([CALL]) + "</s>", "A</s>"]


def test_tools_reach_the_template_or_are_named(tokenizer_with):
    lines: list[str] = []
    folder = with_template(tokenizer_with(), QWEN)
    plain = read(folder, {"messages": turns("Q", "A")}, lines)
    assert not plain.tools and plain == read(folder, {"messages": turns("Q", "A"), "tools": []}, lines)
    chat = read(folder, {"messages": turns("Q", "A"), "tools": TOOLS}, lines)
    assert chat.tools and chat.text == "<s>system\n" + json.dumps(TOOLS[0]) + "</s>\n" + plain.text and not lines
    with_template(folder, CHATML)
    documents = [{"title": "x", "text": "y"}]
    record = {"messages": turns("Q", "A"), "tools": TOOLS, "documents": documents}
    assert read(folder, record, lines).text == read(folder, {"messages": turns("Q", "A")}).text
    assert lines == [
        "chats: the records' 'tools' is not used: the chat template does not read it",
        "chats: the records' 'documents' is not used: the chat template does not read it",
    ]


def test_variables_of_the_template(tokenizer_with):
    folder = with_template(tokenizer_with(), CHATML + "{% if brief %}{{ 'brief' }}{% endif %}")
    record = {"messages": turns("Q", "A"), "chat_template_kwargs": {"brief": True}}
    assert read(folder, record).text == read(folder, {"messages": turns("Q", "A")}).text + "brief"


def test_the_template_for_tools(tokenizer_with):
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": QWEN}]
    folder = with_template(tokenizer_with(), named)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    for tools in (None, TOOLS):
        messages = turns("Q", "A")
        expected = reference.apply_chat_template(messages, tools=tools, tokenize=False)
        assert read(folder, {"messages": messages, "tools": tools}).text == expected


def test_what_is_not_used_is_named_once(tokenizer_with):
    lines: list[str] = []
    folder = with_template(tokenizer_with(), CHATML)
    messages = [
        {"role": "user", "content": "Q", "weight": 1, "lang": "en", "name": None},
        {"role": "assistant", "content": "A", "reasoning_content": "T", "lang": "en", "id": "1"},
        {"role": "bot", "content": "B"},
    ]
    record = {"messages": messages, "system": "S", "weight": 0.5, "functions": None, "source": "x"}
    assert answers(read(folder, record, lines)) == ["A</s>"]
    assert lines == [
        "chats: the records' field 'system' is not used; to use it, make it the first message",
        "chats: the records' field 'weight' is not used; to use it, mark the messages",
        "chats: messages of the user are marked to be learnt; only the assistant's are",
        "chats: the messages' field 'lang' is not used: the chat template does not read it",
        "chats: the messages' field 'reasoning_content' is not used: the chat template does not read it",
        "chats: the role 'bot' is not the assistant's, so its messages are not learnt",
    ]


@pytest.mark.parametrize("name", ["weight", "train", "training", "trainable", "loss"])
def test_flags_of_messages(tokenizer_with, name):
    folder = with_template(tokenizer_with(), CHATML)
    messages = turns("Q", "A", "Q", "B", "Q", "C")
    plain = read(folder, {"messages": messages})
    for message, value in zip(messages[1::2], (0, 1.0, None) if name == "weight" else (False, True, None), strict=True):
        message[name] = value
    chat = read(folder, {"messages": messages})
    assert chat.text == plain.text and answers(chat) == ["B</s>", "C</s>"]
