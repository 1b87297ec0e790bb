"""Chat templates and conversations."""

import json
from collections.abc import Mapping
from typing import Any

from torture import mutate
from torture.sandbox import Reader
from torture.targets.target import Draw, Target, json_bytes

TEMPLATES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch ESCAPED') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ lipsum.__globals__['os'].popen('touch ESCAPED').read() }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('ESCAPED', 'w') }}",
    "{{ tojson.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{{ 'a' * 10**10 }}",
    "{{ messages * 10**9 }}",
    "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
    "{{ messages.append(1) }}",
    "{{ 10**10**8 }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ ('{0.__init__.__globals__}'|string).format(raise_exception) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ raise_exception('a\\nb\\nc') }}",
    "{{ raise_exception('x' * 100000) }}",
    "{% set ns = namespace(x=messages) %}{{ ns.x.pop() }}",
    "{{ strftime_now('%Y') }}",
    "{% if %}",
    "{{ messages[0]['content'] | attr('__class__') }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ strftime_now.__globals__ }}",
    "{{ x.y.z }}",
    "",
    "\ud800",
    "{{ [1]|sum(attribute='__class__') }}",
    "{{ dict.mro() }}",
    "{{ range.__self__ }}",
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{{ ''|center(10**10) }}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "{{ joiner.__init__.__globals__ }}",
)
INTERNALS = ("<class", "<function", "__builtins__", "built-in")
CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}{% if m.weight is defined %}{% endif %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What do herons eat?"},
        {"role": "assistant", "content": "Fish.", "weight": 1},
        {"role": "user", "content": "And frogs?"},
        {"role": "assistant", "content": "Frogs eat flies.", "weight": 0},
    ],
    "tools": [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}],
}


def chat_template(draw: Draw) -> Reader:
    model = draw.model()
    text = TEMPLATES[int(draw.kind.partition(":")[0])]
    (model / "chat_template.jinja").write_bytes(text.encode("utf-8", "surrogatepass"))
    (draw.folder / "chats.jsonl").write_bytes(json_bytes(CHAT) + b"\n")

    def read() -> str:
        import os

        from chopjax.data.chat import conversations
        from chopjax.data.config import TextSource
        from chopjax.data.template import load_template
        from chopjax.data.tokenize import load_tokenizer

        os.chdir(draw.folder)
        source = TextSource(path=str(draw.folder / "chats.jsonl"), messages="messages")
        found = list(conversations(source, load_template(model, load_tokenizer(model))))
        if (draw.folder / "ESCAPED").exists():
            return "code of the template ran"
        text = found[0].text if found else ""
        return f"shows Python's own objects: {text[:80]}" if any(word in text for word in INTERNALS) else ""

    return read


RECORDS: Mapping[str, Any] = {
    "a null content of the user": {"messages": [{"role": "user", "content": None}, CHAT["messages"][2]]},
    "a null content of the system": {"messages": [{"role": "system", "content": None}, *CHAT["messages"][1:3]]},
    "a null answer": {"messages": [CHAT["messages"][1], {"role": "assistant", "content": None}]},
    "no content": {"messages": [{"role": "user"}, CHAT["messages"][2]]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, CHAT["messages"][2]]},
    "an unknown role": {"messages": [{"role": "narrator", "content": "x"}]},
    "a role that is a number": {"messages": [{"role": 3, "content": "x"}]},
    "a huge weight": {"messages": [CHAT["messages"][1], CHAT["messages"][2] | {"weight": 10**30}]},
    "a weight below zero": {"messages": [CHAT["messages"][1], CHAT["messages"][2] | {"weight": -1}]},
    "a weight that is text": {"messages": [CHAT["messages"][1], CHAT["messages"][2] | {"weight": "0"}]},
    "a weight that is NaN": {"messages": [CHAT["messages"][1], CHAT["messages"][2] | {"weight": float("nan")}]},
    "tools that are a number": CHAT | {"tools": 3},
    "tools of text": CHAT | {"tools": "not JSON"},
    "tools of another kind": CHAT | {"tools": [1, None, "x"]},
    "tools that are null": CHAT | {"tools": None},
    "a tool call": {
        "messages": [
            CHAT["messages"][1],
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
        ]
    },
    "no messages": {"messages": []},
    "messages that are text": {"messages": "hello"},
    "messages of text": {"messages": ["hello"]},
    "markup in a content": {"messages": [{"role": "user", "content": "{{ 7*7 }}<s></s>"}, CHAT["messages"][2]]},
}
CHANGED = tuple(f"changed {number}" for number in range(12))


def chat_records(draw: Draw) -> Reader:
    model = draw.model()
    (model / "chat_template.jinja").write_text(CHATML)
    record = RECORDS.get(draw.kind) or mutate.json_value(draw.rng, CHAT)
    line = json.dumps(record).encode("utf-8", "surrogatepass")
    (draw.folder / "chats.jsonl").write_bytes(json_bytes(CHAT) + b"\n" + line + b"\n")

    def read() -> str:
        from chopjax.data.chat import conversations
        from chopjax.data.config import TextSource
        from chopjax.data.template import load_template
        from chopjax.data.tokenize import load_tokenizer

        source = TextSource(path=str(draw.folder / "chats.jsonl"), messages="messages")
        chats = list(conversations(source, load_template(model, load_tokenizer(model))))
        for chat in chats:
            if "None" in chat.text and "None" not in line.decode("utf-8", "replace"):
                return f"a null was written as None: {chat.text[:100]!r}"
            if any(not 0 <= first <= last <= len(chat.text) for first, last in chat.answers):
                return f"answers {chat.answers} of {len(chat.text)} characters"
        return "" if chats else "the sound conversation was lost"

    return read


TARGETS = (
    Target("chat_template", chat_template, [f"{number}: {text[:50]}" for number, text in enumerate(TEMPLATES)]),
    Target("chat_records", chat_records, [*RECORDS, *CHANGED]),
)
