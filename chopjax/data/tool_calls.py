"""Tool calls and tools, in the forms that datasets keep them in, as the objects that chat templates read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chopjax.errors import UserError


def read_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """The calls of one message as a list of objects; `arguments` that are JSON text of an object become that object.

    A call is `{"type": "function", "function": {"name", "arguments"}}` or `{"name", "arguments"}`, and stays so.

    Args:
        value: a list of calls, one call, or JSON text of either.
        where: names the field, for messages.

    Raises:
        UserError: it is something else.
    """
    value = _parsed(value, where)
    calls = value if isinstance(value, list) else [value]
    return [_call(_parsed(call, f"{where}[{index}]"), f"{where}[{index}]") for index, call in enumerate(calls)]


def as_function_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """`{"name", "arguments"}`, a list of them or JSON text of either, as the `tool_calls` of one message.

    Raises:
        UserError: it is something else.
    """
    return [{"type": "function", "function": call} for call in read_calls(value, where)]


def read_objects(value: Any, where: str) -> list[dict[str, Any]] | None:
    """The tools or documents of a conversation as a list of objects; None where there are none.

    Args:
        value: a list of objects, one object, JSON text of either, or null.
        where: names the field, for messages.

    Raises:
        UserError: it is something else.
    """
    if value is None or value == "":
        return None
    value = _parsed(value, where)
    found = value if isinstance(value, list) else [value]
    objects = [_parsed(one, f"{where}[{index}]") for index, one in enumerate(found)]
    for index, one in enumerate(objects):
        if not isinstance(one, dict):
            raise UserError(f"{where}[{index}] is {type(one).__name__}, not an object")
    return objects or None


def forms(messages: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The messages in each form that chat templates expect tool calls in; the first that a template takes is right.

    Stock transformers leaves null content out, and recommends arguments that are objects. Some templates need content
    that is empty. Others (DeepSeek-R1's) join the arguments to text, and tell a message that is a call alone by its
    content, which is null.
    """
    given = [dict(message) for message in messages]
    yield given
    if any("tool_calls" in message for message in given):
        yield [{"content": "", **message} for message in given]
        as_text = [_as_text(message) for message in given]
        yield as_text
        yield [{"content": None, **message} for message in as_text]
        yield [{"content": "", **message} for message in as_text]


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose calls have their arguments as JSON text."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            function = {**function, "arguments": json.dumps(arguments, ensure_ascii=False)}
        calls.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": calls}


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f"{where} is no call of a function; a call is an object with function, or name and arguments")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None  # not every dataset keeps JSON here; the template decides
        function = {**function, "arguments": parsed if isinstance(parsed, dict) else arguments}
    return {**call, "function": function} if "function" in call else function


def _parsed(value: Any, where: str) -> Any:
    """`value`, or what it says where it is JSON text."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is text, but not JSON ({error})") from error
    if not isinstance(found, list | Mapping):
        raise UserError(f"{where} is JSON text of {type(found).__name__}, not of an object or a list of them")
    return found
