"""Random changes to JSON values and to bytes, of the kinds that damaged and hostile files hold."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 8 * 2**60, 10**9, 10**12, 10**30, -(10**30)),
    *(0.5, 1e308, float("nan"), float("inf"), -0.0, True),
)
TEXTS = (
    *("", "x", "../..", "/etc/passwd", "\x00", "\ud800", "F32", "F64", "I64", "BOOL", "nan", "1e9", "{{7*7}}"),
    *("a" * 10_000, "\u202e", "[]"),
)
Path = tuple[Any, ...]


def json_value(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value with one to three changes at random places."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path = rng.choice(list(_places(value)))
        if not path:
            if rng.random() < 0.1:
                return _any_value(rng)
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        _change(rng, holder, path[-1])
    return value


def json_bytes(rng: random.Random, value: Any) -> bytes:
    """A value as JSON text; of ten texts, one is damaged as text."""
    text = json.dumps(value)
    damage: dict[int, Callable[[], str | bytes]] = {
        0: lambda: text[: rng.randrange(len(text) + 1)],
        1: lambda: text[: rng.randrange(len(text) + 1)],
        2: lambda: text[: rng.randrange(len(text) + 1)],
        3: lambda: "[" * 100_000,
        4: lambda: text.replace("{", '{"a":1,"a":2,', 1),
        5: lambda: text + "x",
        6: lambda: "\ufeff" + text,
        7: lambda: text.replace("1", "1" * 5000, 1),
        8: lambda: text.encode("utf-16"),
        9: lambda: text.encode("utf-8", "surrogatepass") + b"\xff\xfe",
    }
    chosen = damage.get(rng.randrange(100))
    changed = chosen() if chosen else text
    return changed if isinstance(changed, bytes) else changed.encode("utf-8", "surrogatepass")


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes with flipped bits, a cut end, random bytes after the end, zeros in place of some bytes, or a gap."""
    changed = bytearray(data)
    if not changed:
        return data
    kind, place = rng.random(), rng.randrange(len(changed))
    if kind < 0.5:
        for _ in range(rng.choice([1, 1, 4])):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind < 0.7:
        del changed[place:]
    elif kind < 0.8:
        changed += rng.randbytes(rng.randint(1, 100))
    elif kind < 0.9:
        changed[place : place + 64] = bytes(len(changed[place : place + 64]))
    else:
        del changed[place : place + rng.randint(1, 16)]
    return bytes(changed)


def one_bit(rng: random.Random, data: bytes) -> bytes:
    """Bytes with one flipped bit."""
    changed = bytearray(data)
    if changed:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _places(value: Any, path: Path = ()) -> Iterator[Path]:
    """The path of every value inside a JSON value."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _places(entry, (*path, key))


def _change(rng: random.Random, holder: Any, key: Any) -> None:
    """One change at one place."""
    if isinstance(holder, dict) and key not in holder:  # an earlier change removed it
        return
    how = rng.random()
    if how < 0.15:
        del holder[key]
    elif how < 0.25 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = _any_value(rng)
    elif how < 0.45 and type(holder[key]) is int:
        scaled = holder[key] * rng.choice([2, -1, 1000, 10**9])
        holder[key] = rng.choice([scaled, holder[key] + rng.choice([1, -1, 4, 64]), 0])
    else:
        holder[key] = _any_value(rng)


def _any_value(rng: random.Random) -> Any:
    kind = rng.randrange(9)
    if kind in (0, 1):
        return rng.choice(NUMBERS if kind == 0 else TEXTS)
    if kind == 2:
        return [rng.choice(NUMBERS)] * rng.randint(1, 5)
    if kind == 3:
        return {"a": rng.choice(NUMBERS)}
    if kind == 4:
        return _nested(rng.choice([3, 50]))
    return (None, [], {}, False)[kind - 5]


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value
