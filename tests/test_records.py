"""Whatever a file of ours holds, it is read as its shape or refused in one line that names the field."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax import records
from chopjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    name: records.Name
    share: Annotated[float, records.Within(0, 1)] = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    count: records.Positive
    kind: Literal["one", "two"]
    done: bool
    parts: tuple[Inner, ...]
    sizes: Mapping[str, int]
    other: Any = None
    least: float | None = None


GOOD: dict[str, Any] = {
    "count": 3,
    "kind": "two",
    "done": True,
    "parts": [{"name": "a", "share": 1}, {"name": "b"}],
    "sizes": {"x": -2},
    "other": [{"deep": None}],
    "least": 2,
}


def read(value: Any, extra: bool = False) -> Outer:
    return records.shaped(value, Outer, "run/file.json", "make it again", extra)


def test_a_shape_is_read() -> None:
    found = read(GOOD)
    assert found == Outer(3, "two", True, (Inner("a", 1.0), Inner("b")), {"x": -2}, [{"deep": None}], 2.0)
    assert type(found.least) is float and type(found.parts[0].share) is float
    assert read({name: GOOD[name] for name in ("count", "kind", "done", "parts", "sizes")}).least is None
    assert read(GOOD | {"newer": 1}, extra=True) == found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": 0}, "count is 0, not a whole number of 1 or more"),
        ({"count": True}, "count is True, not a whole number of 1 or more"),
        ({"count": 2.0}, "count is 2.0, not a whole number of 1 or more"),
        ({"count": 2**63}, "count is 9223372036854775808, not a whole number of 1 or more"),
        ({"count": None}, "count is None, not a whole number of 1 or more"),
        ({"kind": "three"}, "kind is 'three', not one of one, two"),
        ({"done": 1}, "done is 1, not true or false"),
        ({"parts": {}}, "parts is {}, not a list"),
        ({"parts": [{"name": "a"}, {}]}, "parts[1].name is missing"),
        ({"parts": [{"name": "a", "share": 1.5}]}, "parts[0].share is 1.5, not a number from 0 to 1"),
        ({"parts": [{"name": "..", "share": 1}]}, "parts[0].name is '..', not a plain name"),
        ({"parts": [{"name": "a/b"}]}, "parts[0].name is 'a/b', not a plain name"),
        ({"parts": [{"name": "a\0"}]}, r"parts[0].name is 'a\x00', not a plain name"),
        ({"parts": [{"name": "\ud800"}]}, r"parts[0].name is '\ud800', not text"),
        ({"sizes": {"x": "1"}}, "sizes.x is '1', not a whole number"),
        ({"sizes": {"\ud800": 1}}, r"sizes is '\ud800', not a name"),
        ({"least": math.inf}, "least is inf, not a number"),
        ({"least": [1] * 99}, "least is [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, ..., not a number"),
        ({"new\nline": 1}, r"new\nline is not a known field"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        read(GOOD | change)
    assert str(error.value) == f"run/file.json: {said}; make it again"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.sampled_from([*GOOD]), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(GOOD)), VALUES)
def test_any_other_value_is_read_or_refused_in_one_short_line(name: str, value: Any) -> None:
    try:
        found = read(GOOD | {name: value})
    except UserError as error:
        assert str(error).startswith("run/file.json: ") and "\n" not in str(error) and len(str(error)) < 250
    else:
        assert getattr(found, name) is not None or value is None


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"{} x", b'{"a": NaN}', b'{"a": -Infinity}', b"[" * 100_000, b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}"]
    + [b'{"a": ' + b"1" * 5000 + b"}", b'{"a": "\xff"}'],
)
def test_text_that_is_not_json_is_one_line(tmp_path: pathlib.Path, text: bytes) -> None:
    file = tmp_path / "file.json"
    assert records.read_object(file, "make it again") is None
    file.write_bytes(text)
    with pytest.raises(UserError) as error:
        records.read_object(file, "make it again")
    assert str(error.value).startswith(f"{file}: not valid JSON (") and str(error.value).endswith("; make it again")
    assert "\n" not in str(error.value)
    file.write_bytes(b"[1]")
    with pytest.raises(UserError, match="file.json: not a JSON object; make it again"):
        records.read_object(file, "make it again")
    file.write_bytes(json.dumps({"a": 1}).encode())
    assert records.read_object(file, "make it again") == {"a": 1}


NEWER = "x: written by a newer chopjax (format 3, this one reads up to 2); update chopjax, or again"


@pytest.mark.parametrize(
    ("value", "prefix", "said"),
    [
        (3, "", NEWER),
        (
            "rows 3",
            "rows",
            "x: written by a newer chopjax (format 3, this one reads up to 2); update chopjax, or again",
        ),
        (0, "", "x: format is 0, not 2; again"),
        (True, "", "x: format is True, not 2; again"),
        ([1], "", "x: format is [1], not 2; again"),
        (1, "rows", "x: format is 1, not 'rows 2'; again"),
        ("rows 1 ", "rows", "x: format is 'rows 1 ', not 'rows 2'; again"),
        (None, "rows", "x: format is None, not 'rows 2'; again"),
    ],
)
def test_a_newer_format_is_refused(value: Any, prefix: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        records.check_format({"format": value}, 2, "x", "again", prefix)
    assert str(error.value) == said


def test_a_known_format_is_taken_out() -> None:
    for body, prefix in (({}, ""), ({"format": 1}, ""), ({"format": 2}, ""), ({"format": "rows 1"}, "rows")):
        records.check_format(body, 2, "x", "again", prefix)
        assert body == {}
