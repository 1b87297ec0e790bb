import json
import pathlib
import sys
import types

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import transformers
from array_record.python import array_record_module
from data.chats import CHATML, STRIPPED, turns, with_template, write_chats

from chopjax.data.chat import conversations
from chopjax.data.config import TextSource
from chopjax.data.template import load_template
from chopjax.data.tokenize import covered, load_tokenizer
from chopjax.errors import UserError

CHATS = [turns("Q", "A"), turns("größer?", "yes 🐟", "why?", "so", system="S")]
DEFAULT = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


def texts(path: pathlib.Path, folder: pathlib.Path, **fields: object) -> list[str]:
    source = TextSource(path=str(path), **{"messages": "messages", **fields})
    return [chat.text for chat in conversations(source, load_template(folder, load_tokenizer(folder)))]


@pytest.fixture
def folder(tokenizer_with):
    return with_template(tokenizer_with(), CHATML)


def runs(
    messages: list[dict], folder: pathlib.Path, tmp_path: pathlib.Path
) -> tuple[list[tuple[bool, str]], list[int]]:
    """A conversation's text cut where what is to be predicted begins and ends, put together from its tokens."""
    tokenizer = load_tokenizer(folder)
    source = TextSource(path=str(write_chats(tmp_path / "one.jsonl", [messages])), messages="messages")
    (chat,) = conversations(source, load_template(folder, tokenizer))
    ((ids, offsets),) = tokenizer.encode_offsets([chat.text])
    targets = covered(offsets, chat.answers)
    edges = [0, *(np.flatnonzero(targets[1:] != targets[:-1]) + 1), len(ids)]
    parts = [(bool(targets[a]), tokenizer.decode(ids[a:b])) for a, b in zip(edges, edges[1:], strict=False)]
    return parts, ids


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (
            turns("Hi", "Hello there!"),
            [
                (False, DEFAULT + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
                (True, "Hello there!<|im_end|>"),
                (False, "\n"),
            ],
        ),
        (
            turns("Hi", "Hello there!", system="Be brief."),
            [
                (
                    False,
                    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
                ),
                (True, "Hello there!<|im_end|>"),
                (False, "\n"),
            ],
        ),
        (
            turns("Hi", "Hello!\n\n 🐟", "assistant", "", "Bye", "Hello!", "?"),
            [
                (False, DEFAULT + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
                (True, "Hello!\n\n 🐟<|im_end|>"),
                (False, "\n<|im_start|>user\nassistant<|im_end|>\n<|im_start|>assistant\n"),
                (True, "<|im_end|>"),
                (False, "\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"),
                (True, "Hello!<|im_end|>"),
                (False, "\n<|im_start|>user\n?<|im_end|>\n"),
            ],
        ),
        (
            turns("Hi", "A", "B", "C", system="S"),
            [
                (False, "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
                (True, "A<|im_end|>"),
                (False, "\n<|im_start|>user\nB<|im_end|>\n<|im_start|>assistant\n"),
                (True, "C<|im_end|>"),
                (False, "\n"),
            ],
        ),
    ],
)
def test_smollm2_by_hand(smollm2_folder, tmp_path, messages, expected):
    found, ids = runs(messages, smollm2_folder, tmp_path)
    assert found == expected
    reference = transformers.AutoTokenizer.from_pretrained(smollm2_folder)
    assert ids == reference.apply_chat_template(messages, return_dict=False)


def test_a_token_that_reaches_over_the_edge_is_predicted(tokenizer_with, tmp_path):
    # The space before an answer, which is the template's, and the answer's first letters make one token.
    folder = with_template(tokenizer_with(), STRIPPED)
    found, _ = runs(turns("hill", "water"), folder, tmp_path)
    assert found == [(False, "<s>[INST] hill [/INST]"), (True, " water </s>")]


def test_white_space_counts_where_a_post_processor_trims_it(tokenizer_with, tmp_path):
    folder = with_template(tokenizer_with(), CHATML)
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["post_processor"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    found, _ = runs(turns("Q", "   "), folder, tmp_path)
    assert found[1] == (True, "   ")


def test_every_format_gives_the_same(folder, tmp_path):
    expected = texts(write_chats(tmp_path / "a.jsonl", [*CHATS, []]), folder)
    assert expected == [
        "<|start|>user\nQ<|end|>\n<|start|>assistant\nA<|end|>\n",
        "<|start|>system\nS<|end|>\n<|start|>user\ngrößer?<|end|>\n<|start|>assistant\nyes 🐟<|end|>\n"
        "<|start|>user\nwhy?<|end|>\n<|start|>assistant\nso<|end|>\n",
    ]
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    shared = [[{"from": names[m["role"]], "value": m["content"]} for m in chat] for chat in CHATS]
    path = write_chats(tmp_path / "b.jsonl", shared, "conversations")
    assert texts(path, folder, messages="conversations") == expected
    # Parquet fills what a message lacks with nulls.
    extra = [[*CHATS[0][:-1], {**CHATS[0][-1], "name": "x"}], CHATS[1], None, []]
    parquet.write_table(arrow.table({"messages": extra}), tmp_path / "c.parquet")
    assert texts(tmp_path / "c.parquet", folder) == expected
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "d.arrayrecord"), "group_size:1")
    for chat in CHATS:
        writer.write(json.dumps({"messages": chat}).encode())
    writer.close()
    assert texts(tmp_path / "d.arrayrecord", folder) == expected
    assert texts(tmp_path / "a.jsonl", folder, max_documents=1) == expected[:1]


def test_hub(folder, monkeypatch):
    records = [{"messages": chat} for chat in CHATS]
    module = types.SimpleNamespace(load_dataset=lambda *_, **__: iter(records))
    monkeypatch.setitem(sys.modules, "datasets", module)
    template = load_template(folder, load_tokenizer(folder))
    assert len(list(conversations(TextSource(hub="owner/set", messages="messages"), template))) == 2
    with pytest.raises(UserError, match="owner/set, record 1: no field 'turns'; there are messages; set messages"):
        list(conversations(TextSource(hub="owner/set", messages="turns"), template))


def test_nulls_reach_no_template(tokenizer_with, tmp_path):
    template = "{% for m in messages %}{{ m.content }}{% if m.name is defined %}{{ m.name }}{% endif %}{% endfor %}"
    folder = with_template(tokenizer_with(), template)
    path = write_chats(tmp_path / "a.jsonl", [[{"role": "user", "content": "Q", "name": None}]])
    assert texts(path, folder) == ["Q"]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"text": "x"}, "no field 'messages'; there are text; set messages"),
        ({"messages": "x"}, "field 'messages' is str, not a list of messages; set messages"),
        ({"messages": ["x"]}, r"messages\[0\] is str, not an object of role and content"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\] has no role; there are content"),
        ({"messages": [{}]}, r"messages\[0\] has no role; there are nothing"),
        ({"messages": [{"from": 3, "value": "x"}]}, r"messages\[0\] has no role; there are from, value"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] has no content; there are role; messages have role and"),
        ({"messages": [{"from": "human"}]}, r"messages\[0\] has no value; there are from; messages have role and"),
        (
            {"messages": [{"role": "assistant", "content": None}]},
            r"messages\[0\]: content of the assistant is null, and",
        ),
        ({"messages": [{"from": "gpt", "value": None}]}, r"messages\[0\]: value of the assistant is null, and"),
        ({"messages": [{"from": "gpt", "value": [3]}]}, r"messages\[0\]: content of the assistant is list, not text"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\]: content of the user is int, not text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image", "url": "x"}]}]},
            r"messages\[0\]: content\[1\] is of type 'image'; only text can be read: leave the record out",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
            r"messages\[0\]: content\[0\]: text is int, not text",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "field 'messages' has a lone surrogate"),
        (
            {"messages": [{"role": "user", "content": "x", "weight": 0.5}]},
            r"messages\[0\]: weight is 0.5; only 0 and 1, or false and true, can be used",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "weight": 0, "train": True}]},
            r"messages\[0\]: weight and train contradict each other; keep one of them",
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": ["f(1)"]}]},
            r"messages\[0\]: tool_calls\[0\] is text, but not JSON",
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "f"}]}]},
            r"messages\[0\]: tool_calls\[0\] is no call of a function; a call is an object with function, or name and",
        ),
        (
            {"messages": [{"from": "function_call", "value": "f(1)"}]},
            r"messages\[0\]: value is text, but not JSON",
        ),
        ({"messages": CHATS[0], "tools": "x"}, "tools is text, but not JSON"),
        ({"messages": CHATS[0], "tools": [3]}, r"tools\[0\] is int, not an object"),
        ({"messages": CHATS[0], "chat_template_kwargs": 3}, "chat_template_kwargs must be an object of variables"),
        (
            {"messages": CHATS[0], "chat_template_kwargs": {"tools": []}},
            "chat_template_kwargs must be an object of variables of the template, without messages, tools",
        ),
    ],
)
def test_errors_name_the_record(folder, tmp_path, record, said):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": CHATS[0]}) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(UserError, match=f"a.jsonl, line 2: {said}"):
        texts(path, folder)


def test_an_unknown_role_is_the_template_s_affair(folder, tokenizer_with, tmp_path):
    path = write_chats(tmp_path / "a.jsonl", [[{"role": "critic", "content": "x"}]])
    assert texts(path, folder) == ["<|start|>critic\nx<|end|>\n"]
    with pytest.raises(UserError, match=r"a.jsonl, line 1: the chat template refuses the messages .no role critic"):
        texts(path, with_template(tokenizer_with(), STRIPPED))


def test_files_that_hold_no_records(folder, tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="a.txt: plain text files hold no messages; give JSON lines or Parquet"):
        texts(tmp_path / "a.txt", folder)
    parquet.write_table(arrow.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="a.parquet: no column 'messages'; there are body; set messages"):
        texts(tmp_path / "a.parquet", folder)
