import json
import re

import pytest
import transformers
from data.chats import CHATML, STRIPPED, turns, with_template

from chopjax.data.template import load_template
from chopjax.data.tokenize import load_tokenizer
from chopjax.errors import UserError


def template_of(folder):
    return load_template(folder, load_tokenizer(folder))


@pytest.mark.parametrize("template", [CHATML, STRIPPED])
@pytest.mark.parametrize("begin", [False, True])
def test_text_is_that_of_transformers(tokenizer_with, template, begin):
    folder = with_template(tokenizer_with(), template)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    messages = turns("größer?", " yes\n", "<s>why")
    wanted = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin)
    assert template_of(folder).render(messages, begin) == wanted


def test_where_a_template_is_looked_for(tokenizer_with):
    folder = with_template(
        tokenizer_with(), [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]
    )
    assert template_of(folder).render(turns("a"), False) == "y"
    before = template_of(folder).digest
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert template_of(folder).render(turns("a", "b"), False) == "ab"
    assert template_of(folder).digest != before
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    assert reference.apply_chat_template(turns("a", "b"), tokenize=False) == "ab"


@pytest.mark.parametrize("template", [None, "", [{"name": "tool_use", "template": "x"}]])
def test_no_template(tokenizer_with, template):
    folder = with_template(tokenizer_with(), template)
    with pytest.raises(UserError, match=f"the tokenizer in {re.escape(str(folder))} has no chat template"):
        template_of(folder)


def test_special_tokens_end_turns_and_the_longest_matches(tokenizer_with):
    folder = with_template(tokenizer_with(), "x")
    raw = json.loads((folder / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    extra = [("</s>>", True), ("<plain>", False)]
    raw["added_tokens"] += [{"id": 300 + n, "content": t, "special": s, **flags} for n, (t, s) in enumerate(extra)]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    ends = template_of(folder).ends
    assert ends.findall("<plain></s>></s><s>") == ["</s>>", "</s>", "<s>"]


def test_the_day_is_always_the_same(tokenizer_with):
    day = "\n{{ strftime_now('%d %B %Y') }}|{% if strftime_now is defined %}{{ strftime_now('%d %b %y') }}{% endif %}"
    folder = with_template(tokenizer_with(), day)
    assert template_of(folder).render(turns("a"), False) == "\n26 July 2024|26 Jul 24"


def test_errors_are_one_line(tokenizer_with):
    template = template_of(with_template(tokenizer_with(), STRIPPED))
    with pytest.raises(UserError, match=r"the chat template refuses the messages .no role tool.; correct the record"):
        template.render([{"role": "tool", "content": "x"}], False)
    chatml = template_of(with_template(tokenizer_with(), CHATML))
    with pytest.raises(UserError, match="the chat template refuses the messages"):
        chatml.render([{"role": "user", "content": None}], False)


def test_a_long_complaint_of_a_template_is_cut(tokenizer_with):
    folder = with_template(tokenizer_with(), "{{ raise_exception('x' * 100000) }}")
    with pytest.raises(UserError) as caught:
        template_of(folder).render(turns("a"), False)
    assert str(caught.value) == f"the chat template refuses the messages ({'x' * 117}...); correct the record"


def test_a_template_reaches_nothing_but_the_messages(tokenizer_with):
    template = template_of(with_template(tokenizer_with(), "{{ messages.__class__.__mro__ }}"))
    with pytest.raises(UserError, match="the chat template refuses the messages .*unsafe"):
        template.render(turns("a"), False)


def test_named_templates_in_files(tokenizer_with):
    folder = with_template(tokenizer_with(), "settings")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("for tools")
    with pytest.raises(UserError, match="of those named tool_use none is the default: put it into chat_template.jinja"):
        template_of(folder)
    (folder / "chat_template.jinja").write_text("without")
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    template = template_of(folder)
    for tools in (None, [{"name": "f"}]):
        expected = reference.apply_chat_template(turns("a"), tools=tools, tokenize=False)
        assert template.render(turns("a"), False, {"tools": tools}) == expected
    assert template.digest != template.tool_digest
    (folder / "additional_chat_templates" / "default.jinja").write_text("over it")
    assert template_of(folder).render(turns("a"), False) == "over it"
    assert transformers.AutoTokenizer.from_pretrained(folder).get_chat_template() == "over it"


def test_a_processor_s_template_is_not_the_tokenizer_s(tokenizer_with):
    folder = with_template(tokenizer_with(), None)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    assert transformers.AutoTokenizer.from_pretrained(folder).chat_template is None
    with pytest.raises(UserError, match="tokenizers do not read chat_template.json: put its text into chat_template.j"):
        template_of(folder)


@pytest.mark.parametrize("decoder", [False, True])
def test_special_tokens_are_those_of_transformers(tokenizer_with, decoder):
    tokens = {"0": {"content": "<s>", "special": True}, "1": {"content": "</s>", "special": True}}
    settings = {"bos_token": "<s>", "eos_token": "</s>", **({"added_tokens_decoder": tokens} if decoder else {})}
    folder = with_template(tokenizer_with(settings=settings), "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}")
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<s>"}, "pad_token": "</s>"}))
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    text = template_of(folder).render(turns("a"), False)
    assert text == reference.apply_chat_template(turns("a"), tokenize=False)
    assert text == ("<s>|</s>|" if decoder else "<s>|<s>|</s>")
    ours = load_tokenizer(folder)
    assert (ours.bos, ours.eos) == (reference.bos_token_id, reference.eos_token_id)


def test_names_that_no_template_reads_change_no_digest(tokenizer_with):
    settings = {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": {}}
    folder = with_template(tokenizer_with(settings=settings), CHATML)
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "</s>"}))
    before = template_of(folder).digest
    (folder / "special_tokens_map.json").unlink()
    settings |= {"chat_template": CHATML, "pad_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert template_of(folder).digest == before
