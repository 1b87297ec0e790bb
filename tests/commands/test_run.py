"""What several commands open of a run."""

import pathlib

import pytest

from chopjax.commands.run import read_plan
from chopjax.errors import UserError


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[]", "not a JSON object; make the plan again"),
        (b'{"source": {"sizes": {"mlp": 4}}, "kept": {"mpl": [0]}}', "axis 'mpl' cannot be cut"),
        (b"\xff", "not valid JSON ("),
        (None, "cannot be read ("),
    ],
)
def test_a_file_that_is_no_plan_is_named_with_its_field(text: bytes | None, said: str, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "mine.json"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(UserError) as refused:
        read_plan(file)
    assert str(refused.value).startswith(f"plan.file: {file}") and said in str(refused.value)
    assert "plan.json:" not in str(refused.value)
