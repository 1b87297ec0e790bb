"""A tokenizer's own chat template: messages to the text that the model reads."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chopjax import files
from chopjax.data.special import merged_names, special_names
from chopjax.data.tokenize import Tokenizer
from chopjax.errors import UserError, short

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message], bool], str]  # the messages, and whether to begin an answer after them
DEFAULT, TOOL_USE = "default", "tool_use"

# Some templates write the day on which they run. Rows are to depend on their text alone, so the clock that they see
# stands still, at the day to which Llama's templates themselves fall back.
_DAY = {"%d": "26", "%B": "July", "%b": "Jul", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday", "%a": "Fri"}
_CLOCK = "{% macro strftime_now(format) %}{{ format" + "".join(f"|replace('{k}', '{v}')" for k, v in _DAY.items())
_CLOCK += "|replace('%H', '00')|replace('%M', '00')|replace('%S', '00') }}{% endmacro %}{{ '' }}"


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """How conversations are rendered, as `transformers.PreTrainedTokenizer.apply_chat_template` does it.

    Attributes:
        named: the text of each template by its name; there is one named `default`.
        names: the special tokens by the names that templates know them by.
        ends: matches a token that may end a turn: EOS or any other special token.
        digest: of all that conversations without tools depend on.
        tool_digest: of all that those with tools depend on; the same where one template serves both.
    """

    named: Mapping[str, str]
    names: Mapping[str, str]
    ends: re.Pattern[str]
    digest: str
    tool_digest: str

    def render(self, messages: Sequence[Message], begin: bool, given: Mapping[str, Any] | None = None) -> str:
        """Messages to text.

        Args:
            messages: the conversation.
            begin: whether to begin an answer after them.
            given: `tools` and whatever else the template is to know by name.

        Raises:
            UserError: the template refuses the messages, with its reason.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        given = given or {}
        text = self._text(given)
        clock = _CLOCK if "strftime_now" in text else ""
        values: Any = {"chat_template": clock + text, "add_generation_prompt": begin, **self.names, **given}
        try:
            found: Any = render_jinja_template([[dict(message) for message in messages]], **values)
        except ImportError:
            raise
        except Exception as error:  # jinja2's errors, or any of Python's where a field is missing or of another kind
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"the chat template refuses the messages ({short(reason)}); correct the record") from error
        return found[0][0]  # of the texts and the generation spans, the first text

    def mentions(self, name: str, given: Mapping[str, Any] | None = None) -> bool:
        """Whether the text of the template has such a word, without which it cannot use a field of that name."""
        return name in _words(self._text(given or {}))

    def _text(self, given: Mapping[str, Any]) -> str:
        """As stock transformers chooses: the template for tools where there are any, if the tokenizer has one."""
        tools = given.get("tools") is not None and TOOL_USE in self.named
        return self.named[TOOL_USE if tools else DEFAULT]


@functools.cache
def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text))


def load_template(folder: str | pathlib.Path, tokenizer: Tokenizer) -> ChatTemplate:
    """Reads the chat templates of a tokenizer's folder, in the order of stock transformers.

    Files come first: `chat_template.jinja`, and by their names those in `additional_chat_templates`. Where there is
    none, `chat_template` of `tokenizer_config.json` is the template, or a list of named ones. The template is run by
    `transformers` in its sandbox: it sees the messages and the special tokens, and no files.

    Raises:
        UserError: there is none.
    """
    found = find_template(folder, tokenizer)
    if found is None:
        folder = pathlib.Path(folder)
        raise UserError(
            f"data.sources: the tokenizer in {folder} has no chat template to render messages with; "
            f"{_how(folder, _named(folder))}"
        )
    return found


def find_template(folder: str | pathlib.Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """As `load_template`; None where there is no template."""
    folder = pathlib.Path(folder)
    named = _named(folder)
    if DEFAULT not in named:
        return None
    names = special_names(folder)
    # A name that no template mentions changes nothing; rows made when the files were merged otherwise stay good.
    words = frozenset[str]().union(*map(_words, named.values()))
    merged = merged_names(folder)
    same = all(merged.get(name) == names.get(name) for name in words)
    counted = merged if same else names
    special = sorted(tokenizer.special, key=lambda token: (-len(token), token))  # the longest match first
    # A pattern that matches nothing where there is no special token at all.
    ends = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def digest(name: str) -> str:
        return files.digest({"template": named.get(name, named[DEFAULT]), "names": counted, "special": special})

    return ChatTemplate(named, names, ends, digest(DEFAULT), digest(TOOL_USE))


def _named(folder: pathlib.Path) -> dict[str, str]:
    """The templates by name."""
    main = folder / "chat_template.jinja"
    found: dict[str, Any] = {DEFAULT: _read(main)} if main.is_file() else {}
    more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    found |= {file.stem: _read(file) for file in more if file.is_file()}
    if not found:
        value = (files.read_object(folder / "tokenizer_config.json") or {}).get("chat_template")
        entries = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
        found = {str(entry.get("name")): entry.get("template") for entry in entries} or {DEFAULT: value}
    return {name: text for name, text in found.items() if isinstance(text, str) and text}


def _read(file: pathlib.Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 (byte {error.start}); convert the file") from error


def _how(folder: pathlib.Path, named: Mapping[str, str]) -> str:
    """How to fix that there is no template to take."""
    if named:
        return f"of those named {', '.join(sorted(named))} none is the default: put it into chat_template.jinja"
    if (folder / "chat_template.json").is_file():
        return "tokenizers do not read chat_template.json: put its text into chat_template.jinja"
    return "put chat_template.jinja there, or take a source of plain text"
