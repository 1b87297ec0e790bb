"""Which files of a source are read: those that transformers reads, or the source is refused; and all of one version."""

import fnmatch
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from gcs import Store
from hf.plain_checkpoints import SMALL, plain_checkpoint

from chopjax import files
from chopjax.axes import flatten
from chopjax.chop.plan import Plan
from chopjax.commands.chop import chop_files
from chopjax.errors import UserError, short
from chopjax.hf.checkpoint import open_checkpoint, open_config
from chopjax.hf.families import FAMILIES
from chopjax.hf.reading import load_params
from chopjax.hf.safetensors import INDEX, SINGLE, read_tensor

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NORM = "model.layers.1.input_layernorm.weight"


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | changes))


def refusal(source: str | Path, opener: Callable[[str | Path], Any] = open_checkpoint) -> str:
    with pytest.raises(UserError) as caught:
        opener(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A folder with a new model.safetensors and the index and shards of an older model."""
    folder = plain_checkpoint(tmp_path / "both", max_shard_bytes=9_000, seed=1)
    shutil.copy(plain_checkpoint(tmp_path / "new", seed=2) / SINGLE, folder)
    return folder


def test_model_safetensors_comes_before_an_index(both: Path) -> None:
    checkpoint = open_checkpoint(both)
    assert {entry.file.name for entry in checkpoint.tensors.values()} == {SINGLE}
    new = open_checkpoint(both.with_name("new"))
    np.testing.assert_array_equal(read_tensor(checkpoint.tensors[NORM]), read_tensor(new.tensors[NORM]))
    # Runs on such a folder began with the shards, so they must not go on unnoticed; all others go on.
    assert checkpoint.fingerprint != files.fingerprint(both, nested=False)
    assert new.fingerprint == files.fingerprint(new.place, nested=False)
    (both / SINGLE).unlink()
    assert {entry.file.suffix for entry in open_checkpoint(both).tensors.values()} == {".safetensors"}


def test_a_distributed_checkpoint_next_to_the_weights_is_refused(both: Path) -> None:
    name = "shard-00001-model-00001-of-00002.safetensors"
    (both / name).write_bytes(b"")
    assert refusal(both) == (
        f"{both / name}: part of a distributed checkpoint, which is not read, and which transformers reads instead of "
        f"model.safetensors; move those files away, or save the model with save_pretrained"
    )


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    plain_checkpoint(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")  # without its config nobody reads it
    open_checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    message = (
        f"{tmp_path}/adapter_config.json: transformers applies this adapter, chopjax does not; merge it into its model "
        "(in peft: merge_and_unload(), then save_pretrained to another folder)"
    )
    keep = ", or move adapter_config.json out of the folder to use the model without it"
    assert refusal(tmp_path) == refusal(tmp_path, open_config) == message + keep
    (tmp_path / "config.json").unlink()
    assert refusal(tmp_path) == message


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_small_files_that_are_no_files(tmp_path: Path, name: str) -> None:
    plain_checkpoint(tmp_path)
    file = tmp_path / name
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    again = "replace it by the file of that name from the model's repository"
    assert refusal(tmp_path) == f"{file}: not a file; {again}"
    file.unlink()
    file.mkdir()
    assert refusal(tmp_path) == f"{file}: not a file; {again}"


def test_links(tmp_path: Path) -> None:
    """As in the hub's cache: every file a link to one elsewhere."""
    real = plain_checkpoint(tmp_path / "blobs", max_shard_bytes=9_000)
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for file in real.iterdir():
        (linked / file.name).symlink_to(file)
    assert open_checkpoint(linked).fingerprint == open_checkpoint(real).fingerprint
    shard = next(linked.glob("model-00002*"))
    shard.unlink()
    shard.symlink_to(shard.name)
    assert refusal(linked) == f"{shard}: missing shard, named in {INDEX}; download it again"
    shard.unlink()
    os.mkfifo(shard)
    assert refusal(linked) == f"{shard}: missing shard, named in {INDEX}; download it again"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "not a JSON object; download it again"),
        ("{", "not valid JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "),
        ('{"eos_token_id": "2"}', "eos_token_id must be a token id or a list of them, found '2'"),
        ('{"eos_token_id": [2, 2.5]}', "eos_token_id must be a token id or a list of them, found [2, 2.5]"),
    ],
)
def test_a_broken_generation_config_is_named(tmp_path: Path, content: str, message: str) -> None:
    plain_checkpoint(tmp_path)
    file = tmp_path / "generation_config.json"
    file.write_text('{"eos_token_id": [2, 3], "pad_token_id": null, "temperature": 0.7}')
    open_checkpoint(tmp_path)
    file.write_text(content)
    assert refusal(tmp_path).startswith(f"{file}: {message}")
    file.rename(tmp_path / "config.json")
    assert refusal(tmp_path).startswith(f"{tmp_path}/config.json: {message}")


@pytest.mark.parametrize(
    ("key", "harmless", "acted_on"),
    [
        ("is_causal", True, False),
        ("is_causal", True, None),
        ("is_encoder_decoder", False, True),
        ("attention_chunk_size", 40, 39),
        ("sliding_window", 40, 39),
        ("sliding_window", None, 39),
        ("kv_sharing_modes", None, ["reuse"] * 3),
        ("per_layer_config", {}, {"1": {"intermediate_size": 5}}),
        ("text_config", None, {"hidden_size": 36}),
        ("transformers_weights", None, "other.safetensors"),
        ("configuration_files", ["config.json"], ["config.json", "config.4.0.0.json"]),
        ("auto_map", {"AutoTokenizer": "x.Y"}, {"AutoModelForCausalLM": "x.Y"}),
        ("auto_map", {"AutoModel": "x.Y"}, {"AutoConfig": "x.Y"}),
    ],
)
def test_keys_that_stock_classes_act_on(tmp_path: Path, key: str, harmless: Any, acted_on: Any) -> None:
    plain_checkpoint(tmp_path)
    edit(tmp_path / "config.json", **{key: harmless}, logit_scale=2.0, attn_logit_softcapping=30.0)
    open_checkpoint(tmp_path)
    edit(tmp_path / "config.json", **{key: acted_on})
    assert refusal(tmp_path).startswith(f"{tmp_path}/config.json: {key} is {short(acted_on)}: it ")
    assert refusal(tmp_path, open_config) == refusal(tmp_path)


def test_a_window_is_for_families_that_have_one() -> None:
    sizes = ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "vocab_size")
    raw = dict.fromkeys((*sizes, "intermediate_size"), 2)
    assert FAMILIES["mistral"].config_from_hf(raw | {"sliding_window": 7}).kinds[0].window == 7
    assert FAMILIES["qwen2"].config_from_hf(raw | {"sliding_window": 7}).kinds[0].window is None
    with pytest.raises(UserError, match=r"max_window_layers must be an integer from 0 on, found x"):
        window = {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": "x"}
        FAMILIES["qwen2"].config_from_hf(raw | window)


def changed(file: Path) -> str:
    return f"{file}: changed while it was read; run again when no other process writes to it"


@pytest.mark.parametrize("name", [SINGLE, "config.json", "tokenizer.json"])
def test_a_source_that_changes_after_opening_is_refused(tmp_path: Path, name: str) -> None:
    plain_checkpoint(tmp_path / "source")
    file = tmp_path / "source" / name
    file.touch()
    checkpoint = open_checkpoint(tmp_path / "source")
    (tmp_path / "source" / "README.md").write_text("a note")
    load_params(checkpoint)
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    for read in (
        lambda: load_params(checkpoint),  # also where the end of a tensor is now missing
        lambda: checkpoint.fingerprint,
        lambda: chop_files(checkpoint, Plan(dict(SMALL.sizes), {}), tmp_path / f"student-{name}", 10**9),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == changed(file)


def test_a_source_in_a_store_that_changes_after_opening_is_refused(tmp_path: Path, cloud: Store, bucket: str) -> None:
    for file in plain_checkpoint(tmp_path, max_shard_bytes=9_000).iterdir():
        cloud.put(f"{bucket}/model/{file.name}", file.read_bytes())
    cloud.put(f"{bucket}/model/additional_chat_templates/tools.jinja", b"x")
    checkpoint = open_checkpoint(f"gs://{bucket}/model")
    assert (checkpoint.folder / "additional_chat_templates" / "tools.jinja").read_text() == "x"
    flatten(load_params(checkpoint))
    shard = sorted(tmp_path.glob("model-*"))[1]
    cloud.put(f"{bucket}/model/{shard.name}", shard.read_bytes())
    with pytest.raises(UserError) as caught:
        load_params(checkpoint)
    assert str(caught.value) == changed(checkpoint.place / shard.name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for the repository owner/name on the hub; downloads go to a snapshot of one commit."""
    repository, snapshot = tmp_path / "repository", tmp_path / "cache" / COMMIT

    def download(name: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert name == "owner/name" and revision in ("v1", COMMIT)
        for file in (path for path in repository.rglob("*") if path.is_file()):
            inside = file.relative_to(repository).as_posix()
            wanted = any(fnmatch.fnmatch(inside, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch.fnmatch(inside, pattern) for pattern in ignore_patterns):
                (snapshot / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, snapshot / inside)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return repository


SMALL_FILES = {
    *("config.json", "tokenizer.json", "spiece.model", "merges.txt", "chat_template.jinja"),
    "additional_chat_templates/tools.jinja",
}
OTHER_FILES = ("pytorch_model.bin", "consolidated.safetensors", "original/params.json", "model.fp16.safetensors")


def downloaded(hub: Path) -> set[str]:
    snapshot = hub.with_name("cache") / COMMIT
    return {file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()}


def fill(folder: Path) -> None:
    for name in (*SMALL_FILES, *OTHER_FILES):
        (folder / name).parent.mkdir(exist_ok=True)
        if not (folder / name).exists():
            (folder / name).write_text("{}")


def test_of_the_hub_exactly_what_is_read_is_downloaded(hub: Path) -> None:
    plain_checkpoint(hub, max_shard_bytes=9_000, seed=1)
    index = json.loads((hub / INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    names = {name: f"part[{number}].safetensors" for number, name in enumerate(shards)}
    for name, other in names.items():
        (hub / name).rename(hub / other)
    (hub / "part0.safetensors").write_bytes(b"")  # which the name of a shard would match as a pattern
    edit(hub / INDEX, weight_map={name: names[shard] for name, shard in index["weight_map"].items()})
    fill(hub)
    open_config("owner/name@v1")
    assert downloaded(hub) == SMALL_FILES | {INDEX}
    assert open_checkpoint("owner/name@v1").source == "owner/name@v1"
    assert downloaded(hub) == SMALL_FILES | {INDEX} | set(names.values())


def test_of_the_hub_no_shards_are_downloaded_next_to_a_single_file(hub: Path) -> None:
    plain_checkpoint(hub, max_shard_bytes=9_000, seed=1)
    shutil.copy(plain_checkpoint(hub.with_name("new"), seed=2) / SINGLE, hub)
    fill(hub)
    checkpoint = open_checkpoint("owner/name@v1")
    assert downloaded(hub) == SMALL_FILES | {INDEX, SINGLE}
    assert {entry.file.name for entry in checkpoint.tensors.values()} == {SINGLE}


def test_of_the_hub_no_weights_are_downloaded_for_a_model_that_is_refused(hub: Path) -> None:
    plain_checkpoint(hub)
    fill(hub)
    (hub / "adapter_config.json").write_text("{}")
    assert "transformers applies this adapter" in refusal("owner/name@v1")
    assert SINGLE not in downloaded(hub)
