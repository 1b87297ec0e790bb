"""Every loss against a teacher in whole runs: what is logged and exported, and that a death changes nothing."""

import json
import pathlib
import shutil
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from data.conftest import SENTENCES
from end_to_end import runs
from end_to_end.flows import CUT, HERE, STEP, Flow, check_export, check_same, run_here
from end_to_end.runs import Death
from end_to_end.test_errors import other_tokenizer, refused

from chopjax.axes import flatten
from chopjax.commands import cli, training
from chopjax.data.batches import Batches
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.reading import load_params

HIDDEN = ("block_output", "mlp_input", "relation", "embedding", "embedding_table")


WEIGHTS = {"next_token": 0.2, "kl": 1.0, "reverse_kl": 0.3, "jsd": 0.4, "mse": 0.5, "cosine": 0.6, "wsl": 0.7}
EVERYTHING = (
    *(f"loss.{name}={weight}" for name, weight in WEIGHTS.items()),
    "loss.schedules=({'field': 'kl', 'final': 0.25}, {'field': 'jsd', 'final': 2.0, 'kind': 'cosine', 'steps': 5},"
    " {'field': 'temperature', 'final': 1.0}, {'field': 'z_loss', 'final': 1e-3, 'kind': 'constant'})",
    "loss.temperature=2.0",
    *(f"hidden.{name}={weight}" for name, weight in zip(HIDDEN, (1.0, 0.5, 2.0, 0.3, 0.1), strict=True)),
    "hidden.project=shared",
    "hidden.dynamic=True",
    "hidden.layers=(-1, 0)",
    "train.evaluate_every=4",
    "train.accumulate=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def everything(place: runs.Place, narrow: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run with every term on logits, five on activations, and schedules. Read only."""
    flow = Flow(place, narrow, tmp_path_factory.mktemp("everything"), *EVERYTHING)
    whole = flow.whole()
    check_same(flow.killed("killed", Death(STEP, 6, after=flow._folder / "killed" / "checkpoints" / "3")), whole)
    return whole


def test_every_term_at_once(everything: pathlib.Path) -> None:
    lines = runs.metrics(everything)
    for step, line in enumerate(lines):
        done = step / (runs.STEPS - 1)
        weights = WEIGHTS | {
            "kl": 1.0 + done * (0.25 - 1.0),
            "jsd": 2.0 + (1 + np.cos(np.pi * min(step / 4, 1))) / 2 * (0.4 - 2.0),
            "z_loss": 1e-3,
        }
        for field in ("kl", "jsd"):
            assert line[f"schedule/{field}"] == pytest.approx(weights[field], rel=1e-5)
        on_logits = sum(weight * line[name] for name, weight in weights.items())
        hidden = {name: line[f"hidden/{name}"] for name in HIDDEN}
        assert all(value > 0 for value in hidden.values()) and line["alpha"] > 0
        # Of each micro-batch alpha makes the activations weigh as much as the logits.
        assert line["loss"] == pytest.approx(2 * on_logits, rel=1e-5)
    assert ["heldout_kl" in line for line in lines] == [False, False, False, True] * 2
    assert lines[-1]["heldout_kl"] < 0.9 * lines[3]["heldout_kl"]
    assert lines[-1]["hidden/embedding"] < lines[0]["hidden/embedding"]
    check_export(everything)
    card = (everything / "export" / "README.md").read_text()
    for words in ("0.2 · next-token", "(1 to 0.25) · KL", "weighted soft labels", "0.5 · MLP inputs (cosine)"):
        assert words in card


BEFORE_THE_CHOP = (
    "train.steps_before_chop=3", "train.steps=5", "train.save_every=2",
    "hidden.block_output=1.0", "hidden.mlp_input=1.0", "hidden.project=per_layer", "hidden.distance=normalised_mse",
    "correction.mode=alongside", "correction.learning_rate=1e-2",
)  # fmt: skip


def test_before_the_chop_then_projections_and_a_teacher_that_learns(
    place: runs.Place, narrow: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    flow = Flow(place, narrow, tmp_path, *BEFORE_THE_CHOP)
    whole = flow.whole()
    lines = runs.metrics(whole)
    names = ("teacher_next_token", "hidden/block_output", "hidden/mlp_input", "kl")
    assert [[name in line for name in names] for line in lines] == [[False] * 4] * 3 + [[True] * 4] * 5
    assert all(line["alpha"] == 1 for line in lines[3:])
    taught = [line["teacher_next_token"] for line in lines[3:]]
    assert taught[-1] < taught[0] - 0.2 and lines[-1]["hidden/mlp_input"] < lines[3]["hidden/mlp_input"]
    check_export(whole)
    dense, later = (tmp_path / "killed" / name for name in ("checkpoints_before_chop", "checkpoints"))
    killed = flow.killed("killed", Death(STEP, 3, after=dense / "2"), Death(STEP, 4, after=later / "4"))
    check_same(killed, whole)
    # What the first step after the chop begins with.
    shutil.rmtree(killed / "checkpoints")
    runs.done(place, "states", flow.arguments("killed"))
    before, after = (dict(np.load(killed / f"{name}.npz")) for name in ("before", "after"))
    projections = {name: array for name, array in after.items() if "projections" in name}
    assert {name.partition("projections/")[2] for name in projections} == {"block_output/kernel", "mlp_input/kernel"}
    assert len(projections) == 6  # with both moments of AdamW
    for name, array in projections.items():
        assert array.shape == (3, 28, 36)
        assert not array.any() if name.startswith("opt_state") else (array.sum(1) <= 1).all() and array.sum() == 3 * 28
    for name, array in after.items():
        if name.startswith("teacher/params"):
            np.testing.assert_array_equal(array, load_source(place)[name.partition(":")[2]])
        elif name.startswith("teacher"):
            assert not array.any()  # its own optimizer has not seen a step
        elif ":" not in name:
            assert array == before[name] == 3  # counts of steps
        elif name not in projections:
            assert array.any() and array.size <= before[name].size


def load_source(place: runs.Place) -> dict[str, np.ndarray]:
    return {path: np.asarray(array) for path, array in flatten(load_params(open_checkpoint(place.source))).items()}


def test_the_rate_of_a_teacher_that_learns_is_of_its_own_steps(
    place: runs.Place, narrow: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_here(place, narrow, *CUT, *BEFORE_THE_CHOP, "train.warmup_steps=3", "correction.warmup_steps=2")
    monkeypatch.setattr(training.optimizers, "build", lambda chosen, _: chosen)
    schedule = training.of_teacher(run).optimizer.schedule
    assert (schedule.steps, schedule.warmup_steps, schedule.learning_rate) == (5, 2, 1e-2)


def test_gathered_channels_need_no_projection(place: runs.Place, narrow: pathlib.Path, tmp_path: pathlib.Path) -> None:
    terms = ("hidden.block_output=1.0", "hidden.after_norm=False", "hidden.heads=1.0", "hidden.embedding=1.0")
    flow = Flow(place, narrow, tmp_path, *terms, "hidden.project=gather", "hidden.distance=mse", "train.remat=full")
    whole = flow.whole()
    lines = runs.metrics(whole)
    # The student's embeddings are the teacher's, of the channels that were kept.
    assert lines[0]["hidden/embedding"] == 0 < lines[1]["hidden/embedding"]
    for line in lines:
        expected = line["kl"] + sum(line[f"hidden/{name}"] for name in ("block_output", "heads", "embedding"))
        assert line["loss"] == pytest.approx(expected, rel=1e-6)
    assert lines[-1]["loss"] < lines[0]["loss"]
    check_export(whole)


FIVE_TERMS = (
    "plan.mlp=0", "plan.embed=0", "loss.next_token=1.0", "loss.kl=1.0", "hidden.distance=squared",
    "hidden.block_output=1.0", "hidden.after_norm=False", "hidden.heads=1.0", "hidden.embedding_table=1.0",
    "hidden.project=per_layer", "hidden.layer_map=plan", "data.heldout_fraction=0.0", "train.steps=2",
    "train.warmup_steps=0",
)  # fmt: skip


def test_the_five_terms_of_just_chop(place: runs.Place, everything: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """On a depth cut, against what stock transformers says of both models; of one text, as rows are then whole."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": " ".join(SENTENCES * 40)}))
    arguments = (*FIVE_TERMS, f"data.sources=({{'path': '{tmp_path}/text.jsonl'}},)")
    runs.done(place, "train", place.arguments(tmp_path / "run", *CUT, *arguments))
    run = run_here(place, tmp_path / "run", *CUT, *arguments)
    rows = next(iter(Batches(run.student_data.mixture(), 8, run.settings.seed, threads=0)))
    assert (rows["segment_ids"] == 1).all()

    def seen(folder: pathlib.Path) -> tuple[Any, ...]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        outputs, heads = [], []
        for layer in model.model.layers:
            layer.register_forward_hook(lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out))
            layer.self_attn.o_proj.register_forward_pre_hook(lambda _, given: heads.append(given[0]))
        with torch.no_grad():
            logits = model(torch.from_numpy(rows["tokens"]).long()).logits[:, :-1, : run.tokenizer.vocab]
        return outputs, heads, model.model.embed_tokens.weight, logits.double().log_softmax(-1)

    student, teacher = seen(tmp_path / "run" / "student"), seen(place.source)
    kept = [int(layer) for layer in run.plan.kept["layers"]]
    assert len(kept) == 3 and kept != [0, 1, 2]

    def squared(side: int) -> float:
        pairs = [(student[side][i], teacher[side][layer]) for i, layer in enumerate(kept)]
        # The last position of a row predicts nothing. Projections begin as the identity.
        return sum(float((one - other)[:, :-1].double().square().sum(-1).mean()) for one, other in pairs)

    labels = torch.from_numpy(rows["tokens"][:, 1:]).long()
    expected = {
        "next_token": -float(student[3].gather(-1, labels[..., None]).mean()),
        "kl": float((teacher[3].exp() * (teacher[3] - student[3])).sum(-1).mean()),
        "hidden/block_output": squared(0),
        "hidden/heads": squared(1),
        "hidden/embedding_table": 0.0,
    }
    first, second = runs.metrics(tmp_path / "run")
    assert {name: first[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert first["loss"] == pytest.approx(sum(expected.values()), rel=1e-4)
    assert second["hidden/embedding_table"] > 0
    # What was trained with a shared projection is an ordinary model too.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        _, info = AutoModelForCausalLM.from_pretrained(everything / "export", output_loading_info=True)
    assert not any(info.values()), info


def test_a_teacher_corrected_before(place: runs.Place, narrow: pathlib.Path, tmp_path: pathlib.Path) -> None:
    correction = ("correction.mode=before", "correction.steps=5", "correction.learning_rate=1e-2")
    flow = Flow(place, narrow, tmp_path, *correction, "train.evaluate_every=2", "train.steps=5")
    whole = flow.whole()
    lines, taught = runs.metrics(whole), runs.metrics(whole / "teacher")
    assert [line["step"] for line in taught] == [1, 2, 3, 4, 5]
    assert taught[-1]["heldout_loss"] < taught[0]["next_token"] - 0.3
    assert all("kl" not in line for line in taught) and all(line["kl"] > 0 for line in lines)
    before, after = (tmp_path / "killed" / name for name in ("checkpoints_teacher", "checkpoints"))
    # The teacher goes on with its steps 4 and 5; then come those of the student.
    killed = flow.killed("killed", Death(STEP, 4, after=before / "3"), Death(STEP, 2 + 4, after=after / "3"))
    check_same(killed, whole)
    assert runs.metrics(killed / "teacher") == taught
    # Without the correction, the first loss is another.
    plain = flow.whole("plain", "correction.mode=off", "train.steps=1", "train.warmup_steps=0")
    assert abs(runs.metrics(plain)[0]["kl"] - lines[0]["kl"]) > 1e-2
    runs.model(tmp_path / "other", seed=9)
    ended = runs.run(place, "train", flow.arguments("whole", f"teacher={tmp_path}/other"))
    refused(ended.status, ended.stdout, ended.stderr, "teacher was")


OFF = "learning_rate=0.0"
REFUSED = {
    "no layer map": (("teacher=OTHER", "hidden.mlp_input=1.0", "hidden.project=shared"), "hidden.layer_map is 'plan'"),
    "no projection": (("hidden.embedding=1.0", "hidden.project=none"), "hidden.embedding compares 28 channels with"),
    "layer": (("hidden.relation=1.0", "hidden.layers=(3,)"), "hidden.layers names student layer 3; the student has"),
    "heads": (("hidden.heads=1.0", "plan.q_per_kv=1"), "hidden.heads compares heads one by one"),
    "frozen": (("hidden.embedding=1.0", "hidden.project=shared", f"train.{OFF}"), "hidden.project is 'shared', a matr"),
    "cached hidden": (("hidden.heads=1.0", "cache.kind=top_k"), "hidden needs a teacher that runs"),
    "cached correction": (("correction.mode=alongside", "cache.kind=samples"), "correction.mode needs a teacher that"),
    "cached jsd": (("loss.jsd=1.0", "cache.kind=top_k"), "loss.jsd needs the whole distribution"),
    "correction": (
        ("correction.mode=before", "loss.kl=0.0", "loss.next_token=1.0"),
        "correction.mode is 'before', but no loss compares with a teacher",
    ),
    "teacher's warm-up": (
        ("correction.mode=before", "correction.steps=5", "correction.warmup_steps=6"),
        "correction.warmup_steps is 6, but the teacher's 5 steps",
    ),
    "own samples": (("on_policy.share=0.5", "loss.next_token=0.5"), "loss.next_token would teach the student its own"),
    "cached samples": (("on_policy.share=0.5", "cache.kind=top_k"), "a cache has no targets for new samples"),
    "learning samples": (
        ("on_policy.share=0.5", "on_policy.prompt=7", "correction.mode=alongside"),
        "a learning teacher would learn the student's samples",
    ),
    "prompt": (("on_policy.share=0.5", "on_policy.prompt=24"), "on_policy.prompt is 24, but rows have 24 tokens"),
    "tokenizer": (("teacher=WORDS",), "teacher and student have different tokenizers"),
}


@pytest.fixture(scope="module")
def teachers(place: runs.Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of another teacher, and of one that means other words."""
    folder = tmp_path_factory.mktemp("teachers")
    (words,) = other_tokenizer(folder, place)
    return {"teacher=OTHER": f"teacher={runs.model(folder / 'other', seed=9)}", "teacher=WORDS": words}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_once(
    case: str,
    place: runs.Place,
    teachers: dict[str, str],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides, said = REFUSED[case]
    chosen = [teachers.get(setting, setting) for setting in (*CUT, *HERE, *overrides)]
    monkeypatch.setattr(sys, "argv", ["train", *place.arguments(tmp_path / "run", *chosen)])
    with pytest.raises(SystemExit) as caught:
        cli.run("train")
    refused(caught.value.code, *capsys.readouterr(), said)
    assert not (tmp_path / "run").exists()
