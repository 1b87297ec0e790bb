"""Atomic writes and fingerprints."""

import errno
import pathlib
import shutil

import pytest
from gcs import Store

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


def test_what_a_store_refuses_is_said_as_of_a_disk(cloud: Store, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "refuse", lambda method, name: method == "POST" and name.startswith(bucket))
    with pytest.raises(PermissionError) as refused:
        files.write_json(f"gs://{bucket}/run/plan.json", {})
    assert (refused.value.errno, refused.value.filename) == (errno.EACCES, f"gs://{bucket}/run/plan.json")
    monkeypatch.undo()
    files.write_json(f"gs://{bucket}/run/plan.json", {"a": 1})
    assert cloud.objects[f"{bucket}/run/plan.json"][0] == b'{\n  "a": 1\n}\n'


def test_a_copy_in_a_store_has_the_same_fingerprint(
    cloud: Store, bucket: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "WHOLE_BYTES", 50)
    monkeypatch.setattr(files, "EDGE_BYTES", 10)
    for name, content in {"small": b"x" * 50, "in/big": bytes(range(200))}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
        cloud.put(f"{bucket}/a/{name}", content)
    for nested in (True, False):
        assert files.fingerprint(f"gs://{bucket}/a", nested) == files.fingerprint(tmp_path, nested)
    assert files.fingerprint(f"gs://{bucket}/a/in/big") == files.fingerprint(tmp_path / "in" / "big")
    assert files.fingerprint(f"gs://{bucket}/nothing") == "absent"
    cloud.put(f"{bucket}/a/in/big", bytes(range(199)) + b"y")
    assert files.fingerprint(f"gs://{bucket}/a") != files.fingerprint(tmp_path)
