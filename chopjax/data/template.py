"""A tokenizer's own chat template: messages to the text that the model reads."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chopjax import files
from chopjax.data.tokenize import Tokenizer
from chopjax.errors import UserError

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message], bool], str]  # the messages, and whether to begin an answer after them

# Some templates write the day on which they run. Rows are to depend on their text alone, so the clock that they see
# stands still, at the day to which Llama's templates themselves fall back.
_DAY = {"%d": "26", "%B": "July", "%b": "Jul", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday", "%a": "Fri"}
_CLOCK = "{% macro strftime_now(format) %}{{ format" + "".join(f"|replace('{k}', '{v}')" for k, v in _DAY.items())
_CLOCK += "|replace('%H', '00')|replace('%M', '00')|replace('%S', '00') }}{% endmacro %}{{ '' }}"


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """How conversations are rendered.

    Attributes:
        render: messages to text, as `transformers.PreTrainedTokenizer.apply_chat_template` with `tokenize=False`.
            Raises UserError with what the template complains of.
        ends: matches a token that may end a turn: EOS or any other special token.
        digest: of all that rendered conversations depend on.
    """

    render: Render
    ends: re.Pattern[str]
    digest: str


def load_template(folder: str | pathlib.Path, tokenizer: Tokenizer) -> ChatTemplate:
    """Reads the chat template of a tokenizer's folder: `chat_template.jinja`, or else `tokenizer_config.json`.

    The template is run by `transformers` in its sandbox: it sees the messages and the special tokens, and no files.

    Raises:
        UserError: there is none.
    """
    folder = pathlib.Path(folder)
    settings = files.read_object(folder / "tokenizer_config.json") or {}
    text = _text(folder, settings)
    names = _names((files.read_object(folder / "special_tokens_map.json") or {}) | settings)
    special = sorted(tokenizer.special, key=lambda token: (-len(token), token))  # the longest match first
    # A pattern that matches nothing where there is no special token at all.
    ends = re.compile("|".join(map(re.escape, special)) or r"(?!)")
    digest = files.digest({"template": text, "names": names, "special": special})
    if "strftime_now" in text:
        text = _CLOCK + text

    def render(messages: Sequence[Message], begin: bool) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        said: Any = {"chat_template": text, "add_generation_prompt": begin, **names}
        try:
            found: Any = render_jinja_template([[dict(message) for message in messages]], **said)
        except ImportError:
            raise
        except Exception as error:  # jinja2's errors, or any of Python's where a field is missing or of another kind
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"the chat template refuses the messages ({reason}); mend the record") from error
        return found[0][0]  # of the texts and the generation spans, the first text

    return ChatTemplate(render, ends, digest)


def _text(folder: pathlib.Path, settings: Mapping[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    try:
        found: Any = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 (byte {error.start}); convert the file") from error
    if isinstance(found, list):  # several templates by name
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    if not isinstance(found, str) or not found:
        raise UserError(
            f"data.sources: the tokenizer in {folder} has no chat template to render messages with; put "
            "chat_template.jinja there, or take a source of plain text"
        )
    return found


def _names(settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens by the names that templates know them by: `bos_token`, `eos_token`, ..."""
    found = {name: value for name, value in settings.items() if name.endswith("_token")}
    plain = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    return {name: value for name, value in plain.items() if isinstance(value, str)}
