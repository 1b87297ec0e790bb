"""Checkpoints that are damaged: set aside for an earlier whole one, or named, and never taken for whole."""

import pathlib
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from gcs import Store
from train.saved_states import IDENTITY, TARGET, abstract_arrays, saved

from chopjax.errors import UserError
from chopjax.train.checkpoints import Checkpoints


def damage(folder: pathlib.Path) -> None:
    for file in (file for file in folder.rglob("*") if file.is_file()):
        file.write_bytes(file.read_bytes()[:3])


@pytest.mark.parametrize("part", ["state", "position", "identity", "."])
def test_a_damaged_checkpoint_is_set_aside_for_an_earlier_whole_one(part: str, tmp_path: pathlib.Path) -> None:
    folder, said = tmp_path / "checkpoints", []
    saved(folder, 1, 2, 3)
    for step in (2, 3):
        damage(folder / str(step) / part)
    with Checkpoints(folder, IDENTITY, say=said.append) as checkpoints:
        restored = checkpoints.resume(abstract_arrays(**TARGET))
        assert restored is not None and (restored.step, restored.position) == (1, {"row": 1})
        assert np.array_equal(restored.state["x"], np.arange(9.0) + 1)
        assert checkpoints.steps == [1]
        checkpoints.save(2, {"x": jnp.zeros(9)}, {"row": 2})  # as the run comes by again
        checkpoints.wait()
        assert checkpoints.steps == [1, 2]
    aside = tmp_path / "checkpoints_damaged"
    assert {file.name for file in aside.iterdir()} == {"2", "3"} and (aside / "3" / "state").is_dir()
    assert len(said) == 2 and all(f"moved to {aside}, going on from step 1" in line for line in said)
    assert f"{folder}/2 cannot be read (" in said[0]


@pytest.mark.parametrize("part", ["state", "."])
def test_where_none_is_whole_the_newest_is_named_and_all_are_left(part: str, tmp_path: pathlib.Path) -> None:
    saved(tmp_path, 1, 2)
    for step in (1, 2):
        damage(tmp_path / str(step) / part)
    said = r": no checkpoint can be read: 2 \(.*\), 1 \(.*\); if all are damaged, move them away to begin anew"
    with pytest.raises(UserError, match=said), Checkpoints(tmp_path, IDENTITY) as checkpoints:
        checkpoints.resume(abstract_arrays(**TARGET))
    assert {file.name for file in tmp_path.iterdir()} == {"1", "2"}


def test_a_finished_run_does_not_fall_back(tmp_path: pathlib.Path) -> None:
    saved(tmp_path, 1, 2)
    damage(tmp_path / "2")
    said = "/2 cannot be read .*move it away and train again from the newest before it that can be read"
    with Checkpoints(tmp_path, IDENTITY) as checkpoints, pytest.raises(UserError, match=said):
        checkpoints.restore(abstract_arrays(**TARGET))


def flip(file: pathlib.Path, place: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


@pytest.mark.parametrize(("place", "bit"), [(0, 0), (1217, 3), (2399, 7)])
def test_a_flipped_bit_of_an_array_is_damage(place: int, bit: int, tmp_path: pathlib.Path) -> None:
    folder, said, target = tmp_path / "checkpoints", [], abstract_arrays(x=((600,), jnp.float32))
    with Checkpoints(folder, IDENTITY) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": jnp.arange(600.0) + step}, {})
    array = (np.arange(600, dtype=np.float32) + 2).tobytes()  # large enough to lie in a file as it is
    (file,) = (file for file in (folder / "2" / "state").rglob("d/*") if array in file.read_bytes())
    flip(file, file.read_bytes().index(array) + place, bit)
    with Checkpoints(folder, IDENTITY, say=said.append) as checkpoints:
        with pytest.raises(UserError) as caught:
            checkpoints.restore(target)
        restored = checkpoints.resume(target)
    assert str(caught.value) == (
        f"{folder}/2 cannot be read (x is not what was saved); if it is damaged, move it away and train again from "
        "the newest before it that can be read"
    )
    assert restored is not None and np.array_equal(restored.state["x"], np.arange(600.0) + 1)
    aside = f"{tmp_path}/checkpoints_damaged, going on from step 1"
    assert said == [f"{folder}/2 cannot be read (x is not what was saved); moved to {aside}"]


@pytest.mark.parametrize("part", ["position", "identity", "digests"])
def test_a_flipped_bit_of_a_number_beside_the_arrays_is_damage(part: str, tmp_path: pathlib.Path) -> None:
    folder, said = tmp_path / "checkpoints", []
    saved(folder, 1, 2)
    file = folder / "2" / part / "data.json"
    digit = {"position": b"2", "identity": b"0.0003", "digests": b"float32"}[part]
    flip(file, file.read_bytes().index(digit) + len(digit) - 1)
    with Checkpoints(folder, IDENTITY, say=said.append) as checkpoints:
        restored = checkpoints.resume(abstract_arrays(**TARGET))
    assert restored is not None and (restored.step, restored.position) == (1, {"row": 1})
    what = "list of arrays" if part == "digests" else part
    aside = f"{tmp_path}/checkpoints_damaged, going on from step 1"
    assert said == [f"{folder}/2 cannot be read (its {what} is not what was saved); moved to {aside}"]


def test_a_checkpoint_without_digests_is_read(tmp_path: pathlib.Path) -> None:
    saved(tmp_path, 1)
    shutil.rmtree(tmp_path / "1" / "digests")
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        restored = checkpoints.resume(abstract_arrays(**TARGET))
    assert restored is not None and restored.step == 1


def test_many_damaged_arrays_are_said_in_one_line(tmp_path: pathlib.Path) -> None:
    code = """
import sys, time
import jax, jax.numpy as jnp
from chopjax.errors import UserError
from chopjax.train.checkpoints import Checkpoints

place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
state = {str(leaf): jnp.zeros((64, 64)) for leaf in range(60)}
with Checkpoints(sys.argv[1], {}) as checkpoints:
    checkpoints.save(1, state, {})
    checkpoints.wait()
    for file in checkpoints.folder.glob("1/state/d/*"):
        file.write_bytes(b"abc")
    for _ in range(3):
        try:
            checkpoints.restore(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), state))
        except UserError as error:
            print(error)
        time.sleep(0.2)  # in which reads that were begun beside the failed one end
"""
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert ended.stdout.count("\n") == ended.stdout.count(f"{tmp_path}/1 cannot be read (") == 3
    assert ended.stderr == ""


def test_in_a_store_a_damaged_one_is_set_aside(cloud: Store, bucket: str) -> None:
    folder, said = f"gs://{bucket}/run/checkpoints", []
    saved(folder, 3, 6)
    for name in cloud.names(f"{bucket}/run/checkpoints/6/state"):
        cloud.put(f"{bucket}/run/checkpoints/6/state/{name}", b"abc")
    with Checkpoints(folder, IDENTITY, say=said.append) as checkpoints:
        restored = checkpoints.resume(abstract_arrays(**TARGET))
        assert restored is not None and restored.step == 3 and checkpoints.steps == [3]
    (line,) = said
    assert line.startswith(f"{folder}/6 cannot be read (")
    assert line.endswith(f"; moved to gs://{bucket}/run/checkpoints_damaged, going on from step 3")
    assert "6/commit_success.txt" in cloud.names(f"{bucket}/run/checkpoints_damaged")
