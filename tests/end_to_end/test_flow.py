"""The whole flow from one recipe: what it leaves, what a second start does, and that stock transformers agrees."""

import json
import pathlib
import shutil
import subprocess
import sys
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from end_to_end import runs

from chopjax.axes import flatten
from chopjax.chop.apply import chop_params
from chopjax.chop.plan import Plan
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.reading import load_params
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import forward, logits
from chopjax.models.parameters import count, declare

STAGES = ("score", "plan", "chop", "train", "export", "verify", "evaluate", "report")


def command_line(place: runs.Place, *arguments: str) -> subprocess.CompletedProcess:
    """`python -m chopjax.train`, as a person starts it."""
    return subprocess.run(
        [sys.executable, "-m", "chopjax.train", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=place.environment,
    )


@pytest.fixture(scope="module")
def first(place: runs.Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, str]:
    """A finished workdir, and what its run said."""
    workdir = tmp_path_factory.mktemp("flow") / "run"
    result = command_line(place, *place.arguments(workdir, "train.tensorboard=True"))
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return workdir, result.stdout


@pytest.fixture(scope="module")
def workdir(first: tuple[pathlib.Path, str]) -> pathlib.Path:
    """Read only."""
    return first[0]


def read(file: pathlib.Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def test_it_leaves_all_that_it_promises(first: tuple[pathlib.Path, str]) -> None:
    workdir, said = first
    for name in ("plan.json", "student", "checkpoints", "export", "tensorboard", "report.html", "samples.json"):
        assert (workdir / name).exists(), name
    assert [line.removesuffix(": starts") for line in said.splitlines() if line.endswith(": starts")] == list(STAGES)
    lines = runs.metrics(workdir)
    assert [line["step"] for line in lines] == list(range(1, runs.STEPS + 1))
    assert lines[-1]["loss"] < lines[0]["loss"] and "heldout_perplexity" in lines[-1]
    assert sorted(int(folder.name) for folder in (workdir / "checkpoints").iterdir()) == [6, 8]
    assert not [file for file in workdir.rglob("*") if file.name.startswith(".")]


def test_the_summary_agrees_with_what_lies_there(place: runs.Place, workdir: pathlib.Path) -> None:
    summary, evaluation = read(workdir / "summary.json"), read(workdir / "evaluation.json")
    assert summary["teacher_parameters"] == count(open_checkpoint(place.source).config) == count(runs.MODEL)
    assert summary["parameters"] == count(open_checkpoint(workdir / "export").config) < count(runs.MODEL)
    names = {"teacher": "teacher_perplexity", "chopped": "chopped_perplexity", "healed": "perplexity"}
    assert {name: summary[field] for name, field in names.items()} == {
        name: figures["perplexity"] for name, figures in evaluation.items()
    }
    assert evaluation["teacher"]["kl"] is None and evaluation["healed"]["kl"] < evaluation["chopped"]["kl"]
    # The loss of the last evaluation in training is that of the exported folder, which is float32 like the run.
    assert evaluation["healed"]["nll"] == pytest.approx(runs.metrics(workdir)[-1]["heldout_loss"], rel=1e-5)
    assert summary["tokens"] == runs.STEPS * 4 * 24 and summary["seconds"] > 0
    assert 0 < summary["goodput"] < 1 and summary["skipped"] == 0
    for name in names:
        assert read(workdir / "samples.json")[0][name]
    assert "Healed" in (workdir / "report.html").read_text(encoding="utf-8")


def test_a_second_start_changes_no_byte(place: runs.Place, workdir: pathlib.Path) -> None:
    before = runs.contents(workdir)
    result = command_line(place, *place.arguments(workdir, "train.tensorboard=True"))
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if line.endswith("skipped")] == [
        f"{stage}: done before, skipped" for stage in STAGES
    ]
    assert runs.contents(workdir) == before


def test_a_changed_plan_is_refused_once_training_has_begun(place: runs.Place, workdir: pathlib.Path) -> None:
    before = runs.contents(workdir)
    ended = runs.run(place, "train", place.arguments(workdir, "plan.mlp=13"))
    assert ended.status == 2
    assert ended.stderr == (
        f"error: train in {workdir} began otherwise: plan.mlp was 12 and is 13; put it back or set another workdir\n"
    )
    assert runs.contents(workdir) == before


def test_a_changed_plan_is_made_again_before_that(place: runs.Place, copied: pathlib.Path) -> None:
    ended = runs.done(place, "chop", place.arguments(copied, "plan.mlp=13"))
    assert "plan: made again, for plan.mlp was 12 and is 13" in ended.stdout
    assert "score: done before, skipped" in ended.stdout
    assert Plan.from_json((copied / "plan.json").read_text()).sizes["mlp"] == 13
    assert open_checkpoint(copied / "student").config.mlp == 13
    assert not [file for file in copied.rglob("*") if file.name.startswith(".")]


def test_a_later_stage_alone_is_made_again(place: runs.Place, copied: pathlib.Path) -> None:
    runs.done(place, "heal", place.arguments(copied))
    weights = runs.contents(copied / "export")["model.safetensors"]
    ended = runs.done(place, "heal", place.arguments(copied, "export.dtype=bfloat16"))
    assert "train: done before, skipped" in ended.stdout
    assert "export: made again, for export.dtype was 'source' and is 'bfloat16'" in ended.stdout
    assert open_checkpoint(copied / "export").dtype == "bfloat16"
    rounded = place.arguments(copied, "export.dtype=bfloat16")
    said = runs.done(place, "verify", rounded).stdout
    assert "its logits are the run's; rounding to bfloat16 moves them by" in said
    swap_a_byte(copied / "export" / "model.safetensors", "model.norm.weight")
    refused = runs.run(place, "verify", rounded)
    assert refused.status == 2 and "its logits differ by" in refused.stderr
    # Elsewhere: what is there is neither overwritten nor deleted, and what this run put there is known again.
    elsewhere = copied.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "letter.txt").write_text("dear")
    taken = runs.run(place, "heal", place.arguments(copied, f"export.folder={elsewhere}"))
    assert taken.status == 2 and taken.stderr.count("\n") == 1 and "letter.txt" not in taken.stdout
    assert runs.contents(elsewhere).keys() == {"letter.txt"}
    fresh = place.arguments(copied, f"export.folder={elsewhere}/fresh")
    runs.done(place, "heal", fresh)
    assert runs.contents(elsewhere / "fresh")["model.safetensors"] == weights
    assert "export: done before, skipped" in runs.done(place, "heal", fresh).stdout


def swap_a_byte(file: pathlib.Path, tensor: str) -> None:
    """Doubles or halves the tensor's first bfloat16."""
    data = bytearray(file.read_bytes())
    header = int.from_bytes(data[:8], "little")
    begin = 8 + header + json.loads(data[8 : 8 + header])[tensor]["data_offsets"][0]
    data[begin] ^= 0x80
    file.write_bytes(data)


def our_logits(folder: pathlib.Path, tokens: np.ndarray) -> np.ndarray:
    checkpoint = open_checkpoint(folder)
    params = load_params(checkpoint)
    return np.asarray(
        logits(checkpoint.config, params, forward(checkpoint.config, params, jnp.asarray(tokens, jnp.int32)).hidden)
    )


@pytest.mark.parametrize("folder", ["export", "student"])
def test_stock_transformers_says_the_same(folder: str, workdir: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own
        model, info = AutoModelForCausalLM.from_pretrained(workdir / folder, output_loading_info=True)
    assert not any(info.values()), info
    tokens = np.random.default_rng(3).integers(0, runs.MODEL.vocab, (2, 13))
    with torch.no_grad():
        reference = model(torch.from_numpy(tokens)).logits.numpy()
    difference = np.abs(our_logits(workdir / folder, tokens) - reference).max()
    assert difference <= 1e-4 * np.abs(reference).max()
    assert AutoTokenizer.from_pretrained(workdir / folder).decode([5, 6]) is not None


@pytest.fixture(scope="module")
def two_phases(place: runs.Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, list[str]]:
    """Three steps before the chop, then distillation from a wider model of another family: workdir and arguments."""
    folder = tmp_path_factory.mktemp("two_phases")
    wide = ModelConfig(
        layers=2, embed=40, kv_heads=1, q_per_kv=4, head_dim=8, mlp=21, vocab=307, positions=64, qk_norm=True
    )
    runs.model(folder / "teacher", seed=8, config=wide, model_type="qwen3", dtype="bfloat16")
    overrides = (f"teacher={folder}/teacher", "train.steps_before_chop=3", "train.steps=5", "evaluate.prompts=()")
    arguments = place.arguments(folder / "run", *overrides)
    runs.done(place, "train", arguments)
    return folder / "run", arguments


def test_another_teacher_and_steps_before_the_chop(two_phases: tuple[pathlib.Path, list[str]]) -> None:
    lines = runs.metrics(two_phases[0])
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert ["kl" in line and line["kl"] > 0 for line in lines] == [False] * 3 + [True] * 5
    rates = [line["learning_rate"] for line in lines]
    assert rates[0] < rates[1] and all(early > late for early, late in zip(rates[2:], rates[3:], strict=False))
    summary = read(two_phases[0] / "summary.json")
    assert summary["teacher_parameters"] != count(runs.MODEL)
    assert summary["tokens"] == 8 * 4 * 24


def test_the_optimizer_state_is_carried_over_the_chop(
    place: runs.Place, two_phases: tuple[pathlib.Path, list[str]], tmp_path: pathlib.Path
) -> None:
    workdir, arguments = two_phases
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # so that training goes on from the end of the steps before
    runs.done(place, "states", [*arguments, f"--config.workdir={tmp_path / 'run'}"])
    before, after = (dict(np.load(tmp_path / "run" / f"{name}.npz")) for name in ("before", "after"))
    plan, leaves = Plan.from_json((workdir / "plan.json").read_text()), declare(runs.MODEL)
    assert before.keys() == after.keys()
    trees = {name.partition(":")[0] for name in before if ":" in name}
    assert len(trees) == 3  # parameters, and both moments of AdamW
    for tree in trees:
        whole = {path: before[f"{tree}:{path}"] for path in leaves}
        for path, kept in flatten(chop_params(plan, leaves, whole)).items():
            assert np.abs(kept).max() > 0
            np.testing.assert_array_equal(after[f"{tree}:{path}"], kept)
    counts = [name for name in before if ":" not in name]
    assert len(counts) == 3 and all(before[name] == after[name] == 3 for name in counts)
