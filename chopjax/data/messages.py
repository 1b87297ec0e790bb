"""Messages of a conversation, in the forms that datasets keep them in, as chat templates read them."""

import dataclasses
from typing import Any

from chopjax.data.tool_calls import as_function_calls, read_calls
from chopjax.errors import UserError

ASSISTANT, TOOL = "assistant", "tool"
# ShareGPT's names of roles; others go to the template as they are.
ROLES = {"human": "user", "gpt": ASSISTANT, "function_call": ASSISTANT, "observation": TOOL}
# Roles that are not the assistant's. The messages of any further role may be answers by another name.
NEVER_LEARNT = ("system", "developer", "user", TOOL, "function", "ipython")
# Whether a message is learnt: `weight` of OpenAI and Mistral, `training` and `train` of Axolotl, `loss` of ms-swift.
FLAGS = ("weight", "train", "training", "trainable", "loss")
# The assistant's thoughts, by the names under which stock transformers takes them.
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
_TEXT_PARTS = ("text", "input_text", "output_text")


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message.

    Attributes:
        message: `role`, `content` and whatever else the template may read.
        learnt: what the message itself says of whether it is learnt; None where it says nothing.
    """

    message: dict[str, Any]
    learnt: bool | None = None


def read_turns(value: Any, field: str, where: str, setting: str = "messages") -> list[Turn]:
    """A conversation as messages of `role` and `content`.

    `{from, value}` becomes `{role, content}`, with `human` and `gpt` for the user and the assistant. Fields that are
    null are left out, as Parquet has them in every message; content that is null is empty. Parts of text are joined. A
    null for a conversation is an empty one.

    Args:
        value: the list of messages.
        field: its name.
        where: the record, for messages.
        setting: the setting that names the field.

    Raises:
        UserError: it is no list of messages, or a message that cannot be read as text.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise UserError(f"{where}: field {field!r} is {type(value).__name__}, not a list of messages; set {setting}")
    return [_turn(entry, f"{where}: {field}[{index}]") for index, entry in enumerate(value)]


def _turn(entry: Any, where: str) -> Turn:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {type(entry).__name__}, not an object of role and content")
    message = {name: value for name, value in entry.items() if value is not None}
    body = "content"
    if "role" not in message and "from" in message:
        role, body = message.pop("from"), "value"
        message = {"role": ROLES.get(role, role) if isinstance(role, str) else role, **message}
        if role == "function_call":
            message["tool_calls"] = as_function_calls(message.pop("value", None), f"{where}: value")
        message["content"] = message.pop("value", None)
    there = ", ".join(map(str, entry)) or "nothing"
    if not isinstance(message.get("role"), str):
        raise UserError(f"{where} has no role; there are {there}; messages have role and content, or from and value")
    learnt = _flag(message, where)
    if "tool_calls" in message:
        message["tool_calls"] = read_calls(message["tool_calls"], f"{where}: tool_calls")
        if not message["tool_calls"]:
            del message["tool_calls"]
    if "function_call" in message and "tool_calls" not in message:  # OpenAI's older form
        message["tool_calls"] = as_function_calls(message.pop("function_call"), f"{where}: function_call")
    content = _content(message.pop("content", None), message["role"], where)
    if content is not None:
        return Turn({**message, "content": content}, learnt)
    if "tool_calls" in message:
        # Left out, as stock transformers does: templates ask whether there is any content.
        return Turn(message, learnt)
    if body not in entry:
        raise UserError(f"{where} has no {body}; there are {there}; messages have role and content, or from and value")
    if message["role"] == ASSISTANT and not any(name in message for name in THOUGHTS):
        raise UserError(f"{where}: {body} of the assistant is null, and there are no tool_calls; leave the record out")
    return Turn({**message, "content": ""}, learnt)


def _content(content: Any, role: str, where: str) -> Any:
    """Content as text; None for none. The result of a tool may be of another kind, of which the template decides."""
    if content is None or isinstance(content, str):
        return content
    kinds = [_kind(part) for part in content] if isinstance(content, list) else [None]
    if role in (TOOL, "function", "ipython") and not (kinds and all(kind in _TEXT_PARTS for kind in kinds)):
        return content
    if None not in kinds:
        return "".join(_part(part, f"{where}: content[{index}]") for index, part in enumerate(content))
    raise UserError(f"{where}: content of the {role} is {type(content).__name__}, not text")


def _kind(part: Any) -> str | None:
    """The type of a part of content; None for what is no such part."""
    if isinstance(part, str):
        return "text"
    if not isinstance(part, dict):
        return None
    found = part.get("type", "text" if "text" in part else None)
    return found if isinstance(found, str) else None


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind, text = _kind(part), part.get("text")
    if kind not in _TEXT_PARTS:
        raise UserError(f"{where} is of type {kind!r}; only text can be read: leave the record out")
    if not isinstance(text, str):
        raise UserError(f"{where}: text is {type(text).__name__}, not text")
    return text


def _flag(message: dict[str, Any], where: str) -> bool | None:
    """Takes out of a message what says whether it is learnt."""
    found = {name: message.pop(name) for name in FLAGS if name in message}
    for name, value in found.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise UserError(f"{where}: {name} is {value!r}; only 0 and 1, or false and true, can be used")
    values = {bool(value) for value in found.values()}
    if len(values) > 1:
        raise UserError(f"{where}: {' and '.join(found)} contradict each other; keep one of them")
    return values.pop() if values else None
