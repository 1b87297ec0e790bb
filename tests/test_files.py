"""Atomic writes and fingerprints."""

import pathlib
import shutil

import pytest

from chopjax import files


def test_failed_write_leaves_the_old_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "deep" / "value.json"
    files.write_json(path, {"loss": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"loss": float("nan")})
    assert path.read_text() == '{\n  "loss": 1.5\n}\n'
    assert [entry.name for entry in path.parent.iterdir()] == ["value.json"]


def test_fingerprint_follows_names_and_contents_only(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "a"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "x").write_bytes(b"123")
    before = files.fingerprint(folder)
    shutil.copytree(folder, tmp_path / "b")
    assert files.fingerprint(tmp_path / "b") == before
    (folder / "in" / "x").write_bytes(b"124")
    assert files.fingerprint(folder) != before
    (tmp_path / "b" / "in" / "x").rename(tmp_path / "b" / "in" / "y")
    assert files.fingerprint(tmp_path / "b") != before
    assert files.fingerprint(tmp_path / "c") == "absent"


def test_fingerprint_of_a_huge_file_reads_its_edges(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WHOLE_BYTES", 10)
    monkeypatch.setattr(files, "EDGE_BYTES", 3)
    path = tmp_path / "x"
    path.write_bytes(b"abc" + b"." * 20 + b"xyz")
    before = files.fingerprint(path)
    path.write_bytes(b"abc" + b"," * 20 + b"xyz")
    assert files.fingerprint(path) == before
    path.write_bytes(b"abc" + b"." * 20 + b"xyZ")
    assert files.fingerprint(path) != before
    path.write_bytes(b"abc" + b"." * 21 + b"xyz")
    assert files.fingerprint(path) != before


def test_digest_ignores_the_order_of_keys() -> None:
    assert files.digest({"a": 1, "b": [2]}) == files.digest({"b": [2], "a": 1}) != files.digest({"a": 1, "b": [3]})
