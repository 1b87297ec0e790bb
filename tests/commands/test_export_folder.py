"""Where an export may not go: refused from the settings alone."""

import pathlib
from typing import Any

import pytest
from hf.plain_checkpoints import plain_checkpoint

from chopjax.commands import export_folder, rounds, settings
from chopjax.commands.settings import Settings
from chopjax.errors import UserError


@pytest.fixture
def there(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with a model, a folder of text and a file."""
    for name in ("model", "text", "rows"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("mine")
    return tmp_path


def chosen(there: pathlib.Path, folder: pathlib.Path | str, **more: Any) -> Settings:
    named = {"source": str(there / "model"), "workdir": str(there / "run"), "export": {"folder": str(folder)}}
    return settings.from_mapping(named | {"data": {"sources": ({"path": str(there / "text")},)}} | more)


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("run", "is the workdir; name another folder, such as 'export' in it"),
        (".", "holds the workdir; name another folder, such as 'export' in it"),
        ("run/student", "the run keeps other files in HERE/run/student; name another folder, such as HERE/run/export"),
        ("run/rows/x", "the run keeps other files in HERE/run/rows; name another folder, such as HERE/run/export"),
        ("run/checkpoints_before_chop", "the run keeps other files in HERE/run/checkpoints_before_chop; name another "),
        ("run/metrics.jsonl", "the run keeps other files in HERE/run/metrics.jsonl; name another folder, "),
        ("model", "HERE/model is source (HERE/model); name another folder"),
        ("model/small", "HERE/model/small lies in source (HERE/model); name another folder"),
        ("text/small", "HERE/text/small lies in data.sources[0] (HERE/text); name another folder"),
        ("file/small", "cannot be made, for HERE/file refuses new files (Not a directory); name another folder"),
        ("link/small", "HERE/link/small lies in source (HERE/model); name another folder"),
    ],
)
def test_folders_in_use(there: pathlib.Path, folder: str, said: str) -> None:
    (there / "link").symlink_to(there / "model")
    with pytest.raises(UserError) as refused:
        export_folder.check(chosen(there, there / folder))
    assert str(refused.value).startswith("export.folder: ") and said.replace("HERE", str(there)) in str(refused.value)


def test_folders_of_other_fields(there: pathlib.Path) -> None:
    for field, more in {
        "teacher": {"teacher": str(there / "rows")},
        "data.rows": {"data": {"rows": str(there / "rows")}},
        "cache.path": {"cache": {"path": str(there / "rows")}},
        "compilation_cache": {"compilation_cache": str(there / "rows")},
    }.items():
        with pytest.raises(UserError) as refused:
            export_folder.check(chosen(there, there / "rows" / "x", **more))
        assert f"lies in {field} ({there}/rows); name another folder" in str(refused.value)


def test_folders_that_are_free_leave_nothing_behind(there: pathlib.Path) -> None:
    before = sorted(there.rglob("*"))
    for folder in ("", there / "run" / "export", there / "run" / "final", there / "new" / "deep", there / "models"):
        export_folder.check(chosen(there, folder))
    export_folder.check(chosen(there, there / "run" / "round-1"))
    assert sorted(there.rglob("*")) == before


def test_rounds_are_refused_before_the_first(there: pathlib.Path) -> None:
    plain_checkpoint(there / "model")
    changes = ({"plan.remove_layers": 1}, {"plan.remove_layers": 1})

    def refused(folder: pathlib.Path, *each: dict) -> str:
        with pytest.raises(UserError) as error:
            rounds.main(chosen(there, folder, rounds=each or changes), pytest.fail)
        assert not (there / "run").exists()
        return str(error.value)

    assert f"the run keeps other files in {there}/run/round-2" in refused(there / "run" / "round-2")
    assert refused(there / "text") == (
        f"export.folder: {there}/text is data.sources[0] ({there}/text); name another folder"
    )
    (there / "out").mkdir()
    assert refused(there / "out") == f"{there}/out is there, but was not made by export of this run; move it away"
    same = {"export.folder": str(there / "x")}
    assert refused(there / "new", same, same) == (
        f"rounds: two rounds export to {there}/x; name another export.folder in one of them"
    )
