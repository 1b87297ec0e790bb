"""Bad input of every kind: one line, exit status 2, at once, and not a byte of the workdir changed.

Each case runs in a workdir that holds a finished chop, which must be as it was afterwards, and where nothing new may
appear.
"""

import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import tokenizers
from end_to_end import runs
from safetensors.numpy import load_file, save_file

from chopjax.chop.plan import Plan
from chopjax.commands import cli

SHARD = "model-00002-of-00003.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"

# What is wrong with a case: given a folder to write into and the place, the overrides that a person might give.
Spoil = Callable[[pathlib.Path, runs.Place], list[str]]


def sharded(folder: pathlib.Path) -> pathlib.Path:
    return runs.model(folder / "model", seed=7, max_shard_bytes=60_000)


def missing_shard(folder: pathlib.Path, place: runs.Place) -> list[str]:
    (sharded(folder) / SHARD).unlink()
    return [f"source={folder}/model"]


def truncated(folder: pathlib.Path, place: runs.Place) -> list[str]:
    file = sharded(folder) / SHARD
    file.write_bytes(file.read_bytes()[:-1])
    return [f"source={folder}/model"]


def holds_nan(folder: pathlib.Path, place: runs.Place) -> list[str]:
    file = shutil.copytree(place.source, folder / "model") / "model.safetensors"
    tensors = load_file(file)
    tensors[UP][3, 5] = np.nan
    save_file(tensors, file)
    return [f"source={folder}/model"]


def float8(folder: pathlib.Path, place: runs.Place) -> list[str]:
    file = shutil.copytree(place.source, folder / "model") / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    height, width = header[UP]["shape"]
    header[UP] |= {"dtype": "F8_E4M3", "shape": [height, 4 * width]}  # as many bytes
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    return [f"source={folder}/model"]


def unsupported(folder: pathlib.Path, place: runs.Place) -> list[str]:
    edit(shutil.copytree(place.source, folder / "model"), model_type="mamba", architectures=["MambaForCausalLM"])
    return [f"source={folder}/model"]


def only_bin(folder: pathlib.Path, place: runs.Place) -> list[str]:
    shutil.copytree(place.source, folder / "model")
    (folder / "model" / "model.safetensors").rename(folder / "model" / "pytorch_model.bin")
    return [f"source={folder}/model"]


def keeps_nothing(folder: pathlib.Path, place: runs.Place) -> list[str]:
    plan = {"source": {"sizes": runs.MODEL.sizes}, "kept": {"mlp": [[], [], [], []]}}
    (folder / "plan.json").write_text(json.dumps(plan))
    return [f"plan.file={folder}/plan.json"]


def other_model(folder: pathlib.Path, place: runs.Place) -> list[str]:
    (folder / "plan.json").write_text(Plan(dict(runs.MODEL.sizes) | {"mlp": 21}, {}).to_json())
    return [f"plan.file={folder}/plan.json"]


def other_tokenizer(folder: pathlib.Path, place: runs.Place) -> list[str]:
    file = shutil.copytree(place.source, folder / "teacher") / "tokenizer.json"
    raw = json.loads(file.read_text())
    vocab = raw["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    file.write_text(json.dumps(raw))
    return [f"teacher={folder}/teacher"]


def edit(folder: pathlib.Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def foreign_export(folder: pathlib.Path, place: runs.Place) -> list[str]:
    (folder / "mine").mkdir()
    (folder / "mine" / "dear").write_text("by hand")
    return [f"export.folder={folder}/mine"]


def more_tokens(folder: pathlib.Path, place: runs.Place) -> list[str]:
    file = shutil.copytree(place.source, folder / "model") / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.add_tokens([f"<{number}>" for number in range(320 - tokenizer.get_vocab_size())])
    tokenizer.save(str(file))
    return [f"source={folder}/model"]


def short_teacher(folder: pathlib.Path, place: runs.Place) -> list[str]:
    edit(shutil.copytree(place.source, folder / "teacher"), max_position_embeddings=23)
    return [f"teacher={folder}/teacher"]


def teacher_of_few_words(folder: pathlib.Path, place: runs.Place) -> list[str]:
    runs.model(folder / "teacher", seed=7, config=dataclasses.replace(runs.MODEL, vocab=250))
    return [f"teacher={folder}/teacher"]


def padding_id_that_is_cut(folder: pathlib.Path, place: runs.Place) -> list[str]:
    edit(shutil.copytree(place.source, folder / "model"), pad_token_id=305)
    return [f"source={folder}/model", "plan.vocab=304"]


def unlisted_token(folder: pathlib.Path, place: runs.Place) -> list[str]:
    file = shutil.copytree(place.source, folder / "model") / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": "[PAD]"}))
    return [f"source={folder}/model", "plan.vocab=300"]


def broken_generation_config(folder: pathlib.Path, place: runs.Place) -> list[str]:
    (shutil.copytree(place.source, folder / "model") / "generation_config.json").write_text("{")
    return [f"source={folder}/model"]


def tokenizer_behind_a_link(folder: pathlib.Path, place: runs.Place) -> list[str]:
    file = shutil.copytree(place.source, folder / "model") / "tokenizer.json"
    file.rename(folder / "elsewhere.json")
    file.symlink_to(folder / "elsewhere.json")
    return [f"source={folder}/model"]


def unread_config(folder: pathlib.Path, place: runs.Place) -> list[str]:
    edit(shutil.copytree(place.source, folder / "model"), attention_dropout="much")
    return [f"source={folder}/model"]


def giving(*overrides: str) -> Spoil:
    return lambda folder, place: list(overrides)


CASES: dict[str, tuple[Spoil, str]] = {
    "unknown field": (giving("plan.mpl=3"), '--config.plan.mpl is not a field; did you mean "plan.mlp"?'),
    "missing shard": (missing_shard, f"{SHARD}: missing shard, named in model.safetensors.index.json"),
    "truncated": (truncated, f"{SHARD}: truncated, "),
    "NaN": (holds_nan, f"tensor {UP} holds NaN or infinity"),
    "float8": (float8, f"tensor {UP}, stored as F8_E4M3, belongs to a quantized checkpoint"),
    "unsupported": (unsupported, "'mamba' with MambaForCausalLM; supported: LlamaForCausalLM (llama), Mistral"),
    "only .bin": (only_bin, "only .bin weights, which are not read; convert them to safetensors"),
    "keeps nothing": (keeps_nothing, "kept.mlp is empty; a model needs at least one"),
    "too many layers": (giving("plan.remove_layers=3"), "3 of 4 layers with layout 'middle'; use 0 to 2"),
    "too wide": (giving("plan.mlp=21"), "plan.mlp: 21 is more than the 20 that the source has"),
    "vocabulary": (giving("plan.vocab=200"), "plan.vocab: keeps 200 rows, but 258 must stay "),
    "another model's plan": (other_model, "made for mlp = 21, but the source has 20"),
    "tokenizer": (other_tokenizer, "teacher and student have different tokenizers"),
    "rows too long": (giving("data.length=65"), "data.length is 65, but the model has 64 positions; use 64 or fewer"),
    "teacher's positions": (short_teacher, "data.length is 24, but the teacher has 23 positions; use 23 or fewer"),
    "teacher's vocabulary": (teacher_of_few_words, "teacher: its vocabulary has 250 rows, but the tokenizer has 3"),
    "no text": (giving("data.sources=({'path': 'nowhere.jsonl'},)"), "nowhere.jsonl"),
    "empty prompt": (giving("evaluate.prompts=('Water', '')"), "evaluate.prompts[1] is empty; give some text"),
    "window": (giving("evaluate.window=65"), "evaluate.window is 65, but the model has only 64 positions"),
    "foreign export": (foreign_export, "/mine is there, but was not made by export of this run; move it away"),
    "tokens beyond the vocabulary": (more_tokens, "has ids up to 319, but the model has only 307 rows"),
    "padding id that is cut": (
        padding_id_that_is_cut,
        "config.json: pad_token_id names id 305, which the plan does not keep; set plan.vocab to 306 or more",
    ),
    "token without a row": (unlisted_token, "the tokenizer's settings name '[PAD]', which tokenizer.json lacks"),
    "broken generation config": (broken_generation_config, "generation_config.json: not valid JSON"),
    "tokenizer behind a link": (tokenizer_behind_a_link, "/model/tokenizer.json: a link to "),
    "config that transformers refuses": (
        unread_config,
        "config.json would be exported as it is, but transformers does not read it: Validation error for field 'atten",
    ),
    "more than all tokens": (giving("loss.top_k=308"), "loss.top_k is 308, but the tokenizer has "),
    "mesh": (giving("mesh.tensor=2"), "do not make up the 1 devices"),
    "attention of GPUs": (
        giving("mesh.attention=cudnn", "train.compute_dtype=bfloat16"),
        "mesh.attention is 'cudnn', which is for NVIDIA GPUs, and the devices are CPUs",
    ),
}
# Found out only where text or weights are read, after the config was written.
LATE = {"NaN", "no text"}


def refused(status: int | str | None, stdout: str, stderr: str, said: str) -> None:
    assert status == 2, stderr
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    assert said in stderr
    assert len(stderr) < 500


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_touched(
    case: str, place: runs.Place, copied: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    spoil, said = CASES[case]
    before, began = runs.contents(copied), time.monotonic()
    ended = runs.run(place, "train", place.arguments(copied, *spoil(tmp_path, place)))
    refused(ended.status, ended.stdout, ended.stderr, said)
    assert time.monotonic() - began < 60
    after = runs.contents(copied)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == ({"config.json"} if case in LATE else set())


@pytest.mark.parametrize("command", ["export", "evaluate", "report"])
def test_a_command_whose_turn_has_not_come(command: str, place: runs.Place, copied: pathlib.Path) -> None:
    ended = runs.run(place, command, place.arguments(copied))
    refused(ended.status, ended.stdout, ended.stderr, "run python -m chopjax.")


def test_an_axis_that_the_mesh_cannot_split(place: runs.Place, copied: pathlib.Path) -> None:
    before = runs.contents(copied)
    ended = runs.run(place, "train", place.arguments(copied, "mesh.tensor=2", "mesh.fsdp=1", "plan.mlp=11"), devices=2)
    refused(ended.status, ended.stdout, ended.stderr, "axis vocab of size 307 cannot be split in the 2 equal parts")
    permitted = ("mesh.tensor=2", "mesh.fsdp=1", "mesh.fallbacks=('vocab',)")
    ended = runs.run(place, "train", place.arguments(copied, *permitted, "plan.mlp=11"), devices=2)
    refused(ended.status, ended.stdout, ended.stderr, "axis mlp of size 11 cannot be split in the 2 equal parts")
    ended = runs.run(place, "train", place.arguments(copied, "train.batch=3"), devices=2)
    refused(ended.status, ended.stdout, ended.stderr, "train.batch is 3, which the 2 parts of mesh.data x mesh.fsdp")
    assert runs.contents(copied) == before


def test_bad_weights_found_while_chopping_leave_what_was_chopped_before(
    place: runs.Place, copied: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    plan = Plan(dict(runs.MODEL.sizes), {"layers": np.array([0, 1, 3])})  # by hand, so nothing is scored
    (tmp_path / "plan.json").write_text(plan.to_json())
    before = runs.contents(copied)
    overrides = [*holds_nan(tmp_path, place), f"plan.file={tmp_path}/plan.json"]
    ended = runs.run(place, "chop", place.arguments(copied, *overrides))
    refused(ended.status, ended.stdout, ended.stderr, f"tensor {UP} holds NaN or infinity")
    after = runs.contents(copied)
    assert after["student/model.safetensors"] == before["student/model.safetensors"]
    assert after["stages/chop.json"] == before["stages/chop.json"]
    assert not [name for name in after if "/." in f"/{name}"]


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_folder_of_something_else_is_no_workdir(name: str, place: runs.Place, tmp_path: pathlib.Path) -> None:
    folder = shutil.copytree(place.source, tmp_path / "model") if name == "config.json" else tmp_path
    (folder / "metrics.jsonl").write_text("{}\n")
    before = runs.contents(folder)
    ended = runs.run(place, "plan", place.arguments(folder, f"source={place.source}"))
    refused(ended.status, ended.stdout, ended.stderr, f"{name} is there, but was not made by a run; name another")
    assert runs.contents(folder) == before
    ended = runs.run(place, "plan", place.arguments(folder / name))
    refused(ended.status, ended.stdout, ended.stderr, "cannot be made (File exists); name another")


def test_a_workdir_has_one_process_at_a_time(place: runs.Place, copied: pathlib.Path) -> None:
    before, folder = runs.contents(copied), os.open(copied, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    ended = runs.run(place, "train", place.arguments(copied))
    os.close(folder)
    refused(ended.status, ended.stdout, ended.stderr, "another process works in")
    assert runs.contents(copied) == before


@pytest.mark.parametrize("case", ["keeps nothing", "unsupported"])
def test_as_a_person_starts_it(case: str, place: runs.Place, tmp_path: pathlib.Path) -> None:
    spoil, said = CASES[case]
    command = [sys.executable, "-m", "chopjax.train", *place.arguments(tmp_path / "run", *spoil(tmp_path, place))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    refused(result.returncode, result.stdout, result.stderr, said)
    assert not (tmp_path / "run").exists()


def another_tokenizer(folder: pathlib.Path, place: runs.Place) -> list[str]:
    other_tokenizer(folder, place)
    return [f"source={folder}/teacher"]


def fewer_positions(folder: pathlib.Path, place: runs.Place) -> list[str]:
    edit(shutil.copytree(place.source, folder / "short"), max_position_embeddings=23)
    return [f"source={folder}/short"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (another_tokenizer, "and the model have different tokenizers"),
        (fewer_positions, "data.length is 24, but the model has 23 positions"),
    ],
)
def test_rows_prepared_for_another_model(
    spoil: Spoil,
    said: str,
    place: runs.Place,
    chopped: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = [f"data.rows={chopped}/rows", "data.sources=()", *spoil(tmp_path, place)]
    monkeypatch.setattr(sys, "argv", ["prepare_data", *place.arguments(tmp_path / "run", *overrides)])
    with pytest.raises(SystemExit) as caught:
        cli.run("prepare_data")
    refused(caught.value.code, *capsys.readouterr(), said)
