"""The score file: there and back, merged, and refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from chopjax.errors import UserError
from chopjax.score import checked
from chopjax.score.file import ScoreFile


def batch_sums(seed: int) -> dict[str, np.ndarray]:
    """What one batch gives: float32, and whole numbers of words."""
    rng = np.random.default_rng(seed)
    return {
        "rows": np.array([2, 2], np.float32),
        "mlp": rng.gamma(0.3, 100, (2, 3, 2, 4, 11)).astype(np.float32),
        "words": rng.integers(0, 9, (2, 17)).astype(np.int32),
    }


def added(seeds: range) -> dict[str, np.ndarray]:
    """The sums of several batches, in float64 and int64."""
    parts = [batch_sums(seed) for seed in seeds]
    return {
        name: np.sum([part[name].astype(np.int64 if name == "words" else np.float64) for part in parts], axis=0)
        for name in parts[0]
    }


def scored(seeds: range, data: tuple[str, ...] = ("a/0-8",)) -> ScoreFile:
    return ScoreFile(added(seeds), "m0", data, {"layers": 4, "mlp": 11}, "a model", "bfloat16", 128)


def test_there_and_back(tmp_path: Path) -> None:
    file = scored(range(3), ("a/0-8", "b"))
    strided = dataclasses.replace(file, sums={**file.sums, "mlp": file.sums["mlp"].swapaxes(1, 2)})
    path = tmp_path / "new folder" / "scores.safetensors"
    strided.save(path)
    found = ScoreFile.load(path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    for field in dataclasses.fields(ScoreFile):
        if field.name != "sums":
            assert getattr(found, field.name) == getattr(strided, field.name)
    assert found.sums.keys() == strided.sums.keys()
    for name, value in strided.sums.items():
        assert found.sums[name].dtype == value.dtype
        np.testing.assert_array_equal(found.sums[name], value)


def test_merged_files_equal_one_pass(tmp_path: Path) -> None:
    parts = [scored(range(0, 3), ("a/0-12",)), scored(range(3, 5), ("a/12-20",)), scored(range(5, 9), ("b",))]
    for number, part in enumerate(parts):
        part.save(tmp_path / f"{number}.safetensors")
    loaded = [ScoreFile.load(tmp_path / f"{number}.safetensors") for number in range(3)]
    merged, whole = ScoreFile.merge(loaded), added(range(9))
    assert merged.data == ("a/0-12", "a/12-20", "b")
    for name, value in whole.items():
        assert merged.sums[name].dtype == value.dtype
        # float32 numbers of like size add up in float64 without rounding, in any order.
        np.testing.assert_allclose(merged.sums[name], value, rtol=1e-15, atol=0)
    np.testing.assert_array_equal(merged.sums["words"], whole["words"])
    backwards = ScoreFile.merge(loaded[::-1])
    np.testing.assert_allclose(backwards.sums["mlp"], merged.sums["mlp"], rtol=1e-15, atol=0)
    assert ScoreFile.merge(loaded[:1]).sums["mlp"] is loaded[0].sums["mlp"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "m1"}, r"score.files\[1\]: scores of another model \(a model\)"),
        ({"dtype": "float32"}, r"score.files\[1\]: scored with dtype float32, but score.files\[0\] with bfloat16"),
        ({"length": 64}, "scored with length 64, but"),
        ({"data": ("a/0-8",)}, r"score.files\[1\]: holds rows that score.files\[0\] holds too; leave one of them out"),
        ({"data": ("c", "a/7-9")}, "holds rows that"),
        ({"sums": {"rows": np.ones(2)}}, "mlp is in this file or in .*, not in both"),
    ],
)
def test_files_that_do_not_go_together(change: dict, message: str) -> None:
    other = dataclasses.replace(scored(range(2), ("b",)), **change)
    with pytest.raises(UserError, match=message):
        ScoreFile.merge([scored(range(2)), other])


def test_neighbouring_rows_go_together() -> None:
    for data in ("a/8-16", "b/0-8", "a"):
        assert ScoreFile.merge([scored(range(1)), scored(range(1), (data,))]).data == ("a/0-8", data)


def test_names_in_messages() -> None:
    with pytest.raises(UserError, match="^y: holds rows that x holds too"):
        ScoreFile.merge([scored(range(1)), scored(range(1))], names=["x", "y"])
    with pytest.raises(UserError, match="score.files is empty"):
        ScoreFile.merge([])
    scored(range(1)).check_model("m0", "x")
    with pytest.raises(UserError, match=r"^x: scores of another model \(a model\); score this one"):
        scored(range(1)).check_model("m1", "x")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _other_format(path: Path) -> None:
    safetensors.numpy.save_file({"rows": np.ones(2)}, path, {"chopjax_scores": json.dumps({"format": 99})})


def _fields_missing(path: Path) -> None:
    safetensors.numpy.save_file({"rows": np.ones(2)}, path, {"chopjax_scores": json.dumps({"format": 1, "data": []})})


def _one_half(path: Path) -> None:
    file = scored(range(1))
    dataclasses.replace(file, sums={"rows": np.ones(1)}).save(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "no such score file; name one that"),
        (lambda path: path.write_bytes(b""), "damaged, or no score file"),
        (lambda path: path.write_text("what is this? " * 9), "damaged, or no score file"),
        (_cut, "damaged, or no score file"),
        (lambda path: safetensors.numpy.save_file({"rows": np.ones(2)}, path), "not a score file"),
        (_other_format, r"newer chopjax \(format 99, this one reads up to 1\); update chopjax, or score again"),
        (_fields_missing, "model is missing; score again"),
        (_one_half, "rows is no sum over two halves"),
    ],
)
def test_files_that_are_none(tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "scores.safetensors"
    scored(range(1)).save(path)
    damage(path)
    with pytest.raises(UserError, match=message) as caught:
        ScoreFile.load(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_folders_are_no_score_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="damaged, or no score file"):
        ScoreFile.load(tmp_path)


def test_what_is_not_finite_is_not_written(tmp_path: Path) -> None:
    file = scored(range(1))
    file.sums["mlp"][1, 2, 0, 3, 4] = np.inf  # type: ignore[index]
    with pytest.raises(UserError, match="scores: mlp is not finite, so the model overflows in bfloat16"):
        file.save(tmp_path / "scores.safetensors")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "dtype"), [("mlp", np.float64), ("words", np.int64), ("rows", np.float64)])
@pytest.mark.parametrize("bit", [0, 37, 62])
def test_an_altered_sum_is_refused(name: str, dtype: type, bit: int, tmp_path: Path) -> None:
    path, file = tmp_path / "scores.safetensors", scored(range(2))
    file.save(path)
    content, array = bytearray(path.read_bytes()), np.ascontiguousarray(file.sums[name]).tobytes()
    content[content.index(array) + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        ScoreFile.load(path)
    assert str(caught.value) == f"{path}: damaged ({name} is not what was saved); score again"


def test_altered_facts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    scored(range(2)).save(path)
    path.write_bytes(path.read_bytes().replace(b"a/0-8", b"a/0-9"))
    with pytest.raises(UserError) as caught:
        ScoreFile.load(path)
    assert str(caught.value) == f"{path}: damaged (its metadata is not what was saved); score again"


def test_a_long_name_of_a_damaged_sum_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    scored(range(2)).save(path)
    sums, name = safetensors.numpy.load_file(path), "a" * 10_000
    with safetensors.safe_open(path, "numpy") as opened:
        metadata = opened.metadata()
    safetensors.numpy.save_file(sums | {name: np.ones(3)}, path, metadata)
    with pytest.raises(UserError) as caught:
        ScoreFile.load(path)
    assert str(caught.value).startswith(f"{path}: damaged (aaa") and len(str(caught.value)) < len(str(path)) + 200


def test_a_file_of_before_digests_is_read(tmp_path: Path) -> None:
    path, file = tmp_path / "scores.safetensors", scored(range(2))
    facts = {field.name: getattr(file, field.name) for field in dataclasses.fields(file) if field.name != "sums"}
    metadata = {"chopjax_scores": json.dumps({"format": 1, **facts})}
    safetensors.numpy.save_file(dict(file.sums), path, metadata)
    found = ScoreFile.load(path)
    assert found.data == file.data and np.array_equal(found.sums["mlp"], file.sums["mlp"])


def test_arrays_alone_are_checked_too(tmp_path: Path) -> None:
    path, arrays = tmp_path / "arrays.safetensors", {"mlp": np.arange(6.0).reshape(2, 3).T, "embed": np.ones(4)}
    checked.save(path, arrays)
    found = checked.load(path, "run it again")
    assert found.keys() == arrays.keys() and all(np.array_equal(found[name], arrays[name]) for name in arrays)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        checked.load(path, "run it again")
    assert str(caught.value) == f"{path}: damaged (mlp is not what was saved); run it again"
    safetensors.numpy.save_file(arrays, path)
    assert checked.load(path, "").keys() == arrays.keys()
