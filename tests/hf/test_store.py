"""Checkpoints in a store: read where they lie, written so that none looks whole before it is."""

from pathlib import Path

import numpy as np
import pytest
from gcs import Store
from hf.plain_checkpoints import SMALL, plain_checkpoint

from chopjax import files, paths
from chopjax.axes import flatten
from chopjax.errors import UserError
from chopjax.hf.checkpoint import Checkpoint, open_checkpoint
from chopjax.hf.reading import load_params, read_leaf
from chopjax.hf.verify import verify_folder
from chopjax.hf.writing import export_params


def put(cloud: Store, folder: Path, name: str) -> str:
    for file in folder.iterdir():
        cloud.put(f"{name}/{file.name}", file.read_bytes())
    return f"gs://{name}"


@pytest.fixture
def both(cloud: Store, bucket: str, tmp_path: Path) -> tuple[Checkpoint, Checkpoint]:
    """The same checkpoint on a disk and in a store."""
    plain_checkpoint(tmp_path / "model", SMALL, seed=3)
    (tmp_path / "model" / "tokenizer_config.json").write_text("{}")
    url = put(cloud, tmp_path / "model", f"{bucket}/model")
    return open_checkpoint(tmp_path / "model"), open_checkpoint(url)


def test_the_same_numbers_and_the_same_fingerprint(both: tuple[Checkpoint, Checkpoint]) -> None:
    local, remote = both
    assert (remote.config, remote.dtype, remote.raw_config) == (local.config, local.dtype, local.raw_config)
    theirs, ours = flatten(load_params(local)), flatten(load_params(remote))
    assert theirs.keys() == ours.keys()
    for path, value in theirs.items():
        np.testing.assert_array_equal(value, ours[path])
    # Parts that a disk would read row by row.
    index = [slice(1, 3), *[slice(0, 2)] * (len(theirs["layers/mlp/up/kernel"].shape) - 1)]
    np.testing.assert_array_equal(*(read_leaf(checkpoint, "layers/mlp/up/kernel", index) for checkpoint in both))
    assert local.place == local.folder and paths.is_remote(remote.place)
    assert files.fingerprint(remote.place, nested=False) == files.fingerprint(local.place, nested=False)


def test_small_files_come_here_and_weights_stay(both: tuple[Checkpoint, Checkpoint], cloud: Store) -> None:
    folder = both[1].folder
    assert isinstance(folder, Path) and (folder / "tokenizer_config.json").read_text() == "{}"
    assert not list(folder.glob("*.safetensors"))


def test_an_export_is_sound_and_the_same_as_on_a_disk(
    both: tuple[Checkpoint, Checkpoint], cloud: Store, bucket: str, tmp_path: Path
) -> None:
    params = load_params(both[0])
    for folder in (tmp_path / "export", f"gs://{bucket}/export"):
        export_params(folder, params, both[0].config, both[1], max_shard_bytes=20_000)
    made = {name: cloud.objects[f"{bucket}/export/{name}"] for name in cloud.names(f"{bucket}/export")}
    assert {name: content for name, (content, _) in made.items()} == {
        file.name: file.read_bytes() for file in (tmp_path / "export").iterdir()
    }
    assert len(made) > 4 and max(made, key=lambda name: made[name][1]) == "config.json"
    said = [str(finding) for finding in verify_folder(tmp_path / "export")]
    assert [str(finding) for finding in verify_folder(f"gs://{bucket}/export")] == said
    with pytest.raises(UserError, match="export: exists already"):
        export_params(f"gs://{bucket}/export", params, both[0].config, both[1])


def test_a_shard_that_ends_early_is_named(both: tuple[Checkpoint, Checkpoint], cloud: Store, bucket: str) -> None:
    name = f"{bucket}/model/model.safetensors"
    cloud.put(name, cloud.objects[name][0][:-7])
    with pytest.raises(UserError, match=r"gs://.*/model.safetensors: truncated"):
        open_checkpoint(f"gs://{bucket}/model")
    with pytest.raises(UserError, match=r"gs://.*/model.safetensors: changed while it was read"):
        load_params(both[1])
