"""Which small files come along, and which links are followed."""

import json
import os
from pathlib import Path

import pytest
from hf.plain_checkpoints import SMALL, plain_checkpoint, random_params

from chopjax.errors import UserError
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.small_files import small_files
from chopjax.hf.verify import verify_folder
from chopjax.hf.writing import export_params


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plain_checkpoint(tmp_path / "model")
    (tmp_path / "secret").write_text("{}")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "generation_config.json", "chat_template.jinja", "config.json", "additional_chat_templates"],
)
def test_a_needed_file_behind_a_link_is_refused_and_the_advice_works(name: str, folder: Path) -> None:
    target = folder.parent / "secret"
    if name == "additional_chat_templates":
        target.unlink()
        target.mkdir()
        (target / "tools.jinja").write_text("{}")
    if name == "config.json":
        target.write_bytes((folder / name).read_bytes())
        (folder / name).unlink()
    (folder / name).symlink_to(target)
    linked = folder / name / "tools.jinja" if target.is_dir() else folder / name
    with pytest.raises(UserError) as refused:
        small_files(folder)
    assert str(refused.value) == (
        f"{linked}: a link to {os.path.realpath(linked)}, outside of the folder; put the file itself in the place of "
        "the link"
    )
    assert any(
        found.severity == "error" and "outside of the folder" in found.message for found in verify_folder(folder)
    )
    (folder / name).unlink()
    target.rename(folder / name)
    small_files(folder)


def test_a_link_to_nothing_is_refused(folder: Path) -> None:
    (folder / "vocab.json").symlink_to("gone.json")
    with pytest.raises(UserError, match=r"vocab.json: a link to .*/model/gone.json, where no file is; put the file"):
        small_files(folder)


def test_a_licence_behind_a_link_is_left_out_and_said(folder: Path) -> None:
    (folder / "LICENSE").symlink_to(folder.parent / "secret")
    (folder / "NOTICE").write_text("kept")
    found = small_files(folder)
    assert found.left_out == (f"LICENSE is not copied: it is a link to {folder.parent / 'secret'}",)
    export_params(folder.parent / "export", random_params(SMALL), SMALL, open_checkpoint(folder))
    names = {file.name for file in (folder.parent / "export").iterdir()}
    assert names == {"config.json", "model.safetensors", "NOTICE"}


def test_links_inside_the_folder_and_of_weights_are_followed(folder: Path) -> None:
    (folder / "licences").mkdir()
    (folder / "licences" / "one").write_text("free")
    (folder / "LICENSE").symlink_to("licences/one")
    (folder / "model.safetensors").rename(folder.parent / "weights")
    (folder / "model.safetensors").symlink_to(folder.parent / "weights")
    link = folder.parent / "link"
    link.symlink_to(folder)
    found = small_files(link)
    assert found.copied.keys() == {"LICENSE"} and found.left_out == ("not copied: licences",)
    export_params(folder.parent / "export", random_params(SMALL), SMALL, open_checkpoint(link))
    assert (folder.parent / "export" / "LICENSE").read_text() == "free"
    assert not (folder.parent / "export" / "LICENSE").is_symlink()


@pytest.mark.parametrize("blobs", ["models--a--b/blobs", "blobs/ab"])
def test_snapshots_of_the_hub_s_cache(blobs: str, folder: Path) -> None:
    """Also where the cache keeps a file once for all repositories."""
    cache = folder.parent / "cache"
    snapshot = cache / "models--a--b" / "snapshots" / "main"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (cache / blobs).mkdir(parents=True)
    (cache / blobs / "0123").write_text("{}")
    (snapshot / "generation_config.json").symlink_to(os.path.relpath(cache / blobs / "0123", snapshot))
    assert small_files(snapshot).copied.keys() == {"generation_config.json"}
    other = cache / "models--other" / "blobs"
    other.mkdir(parents=True)
    (other / "0123").write_text("{}")
    (snapshot / "added_tokens.json").symlink_to(other / "0123")
    with pytest.raises(UserError, match="added_tokens.json: a link to .*, outside of the folder"):
        small_files(snapshot)


@pytest.mark.parametrize("name", ["generation_config.json", "special_tokens_map.json", "chat_template.json"])
def test_broken_files_are_refused_by_name(name: str, folder: Path) -> None:
    (folder / name).write_text("[]")
    with pytest.raises(UserError, match=f"{name}: not a JSON object"):
        export_params(folder.parent / "export", random_params(SMALL), SMALL, open_checkpoint(folder))
    assert not (folder.parent / "export").exists()
    errors = [found.message for found in verify_folder(folder) if found.severity == "error"]
    assert errors[0].startswith(f"{folder / name}: not a JSON object")


def test_what_is_not_copied_is_named(folder: Path) -> None:
    for name in ("params.json", "modeling_x.py", "README.md", ".gitattributes", "model.safetensors.index.json"):
        (folder / name).write_text("{}")
    (folder / "original").mkdir()
    assert small_files(folder).left_out == ("not copied: modeling_x.py, original, params.json",)


def test_the_tokenizer_s_settings_name_no_code(folder: Path) -> None:
    settings = {"auto_map": {"AutoTokenizer": ["x.Y", None]}, "bos_token": "é"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    export_params(folder.parent / "export", random_params(SMALL), SMALL, open_checkpoint(folder))
    assert json.loads((folder.parent / "export" / "tokenizer_config.json").read_text()) == {"bos_token": "é"}
