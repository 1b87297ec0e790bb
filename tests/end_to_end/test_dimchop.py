"""DimCHOP in whole runs, by matrix and pooled: killed and resumed it is the same, and stock transformers loads it."""

import json
import pathlib
import warnings

import numpy as np
import pytest
from end_to_end import runs
from end_to_end.runs import Death
from safetensors.numpy import load_file

from chopjax.axes import Role, flatten
from chopjax.chop.build import top
from chopjax.chop.plan import Plan
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.reading import load_params
from chopjax.models.decoder import forward, logits
from chopjax.models.parameters import declare

STEP = "chopjax.commands.watch:Watch.after"
NOTHING_CUT = ("plan.remove_layers=0", "plan.mlp=0")
LM_LOSS = ("loss.kl=0.0", "loss.next_token=1.0", "evaluate.prompts=()")
MATRIX = (*NOTHING_CUT, *LM_LOSS, "dimchop.mode=matrix", "dimchop.share=0.3", "dimchop.start=2", "dimchop.steps=4")
POOLED = (
    *NOTHING_CUT[:1], *LM_LOSS, "dimchop.mode=pooled", "plan.mlp=12", "plan.q_per_kv=1", "plan.embed=28",
    "dimchop.start=1", "dimchop.steps=3", "train.steps_before_chop=5", "train.steps=3",
    "train.save_every=2",
)  # fmt: skip


def finished(place: runs.Place, workdir: pathlib.Path, *overrides: str) -> str:
    return runs.done(place, "train", place.arguments(workdir, *overrides)).stdout


def killed_and_finished(place: runs.Place, workdir: pathlib.Path, overrides: tuple[str, ...], death: Death) -> None:
    ended = runs.run(place, "train", place.arguments(workdir, *overrides), death=death)
    assert ended.status == -9, ended.stderr
    finished(place, workdir, *overrides)


def check_same(workdir: pathlib.Path, whole: pathlib.Path) -> None:
    assert runs.metrics(workdir) == runs.metrics(whole)
    assert runs.contents(workdir / "export") == runs.contents(whole / "export")


def check_stock(folder: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    tokens = np.random.default_rng(3).integers(0, runs.MODEL.vocab, (2, 13)).astype(np.int32)
    with torch.no_grad():
        reference = model(torch.from_numpy(tokens).long()).logits.numpy()
    checkpoint = open_checkpoint(folder)
    params = load_params(checkpoint)
    found = np.asarray(logits(checkpoint.config, params, forward(checkpoint.config, params, tokens).hidden))
    assert np.abs(found - reference).max() <= 1e-4 * np.abs(reference).max()


def test_by_matrix(place: runs.Place, tmp_path: pathlib.Path) -> None:
    whole, cut_off = tmp_path / "whole", tmp_path / "cut_off"
    finished(place, whole, *MATRIX)
    lines = runs.metrics(whole)
    shares = [line["kept_share"] for line in lines]
    assert shares[:3] == [1.0] * 3  # steps 1 and 2 are ordinary, and step 3 has the schedule's first masks: none
    assert all(early > late for early, late in zip(shares[2:6], shares[3:7], strict=True))
    assert shares[6] == shares[7] == pytest.approx(0.7, abs=0.02)
    exported = open_checkpoint(whole / "export")
    assert exported.config == runs.MODEL
    params = flatten(load_params(exported))
    for path, leaf in declare(runs.MODEL).items():
        outputs = int(np.prod([runs.MODEL.sizes[name] for name in leaf.outputs]))
        dropped = round(0.3 * outputs) if leaf.role is Role.MATRIX else 0
        columns = np.asarray(params[path]).reshape(runs.MODEL.layers if leaf.stack else 1, -1, outputs)
        assert set((~columns.any(axis=1)).sum(axis=1).tolist()) == {dropped}, path
    # What was measured while training, with masks, is what the exported weights give.
    evaluation = json.loads((whole / "evaluation.json").read_text())
    assert evaluation["healed"]["nll"] == pytest.approx(lines[-1]["heldout_loss"], rel=1e-5)
    assert "DimCHOP: 30% of the output dimensions" in (whole / "export" / "README.md").read_text()
    check_stock(whole / "export")
    killed_and_finished(place, cut_off, MATRIX, Death(STEP, 5, after=cut_off / "checkpoints" / "3"))
    check_same(cut_off, whole)


def test_pooled(place: runs.Place, tmp_path: pathlib.Path) -> None:
    whole, cut_off = tmp_path / "whole", tmp_path / "cut_off"
    said = finished(place, whole, *POOLED)
    starts = [line.removesuffix(": starts") for line in said.splitlines() if line.endswith(": starts")]
    assert [name for name in starts if name != "score"][:4] == ["dimchop", "plan", "chop", "train"]
    lines = runs.metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, 9))
    shares = [line.get("kept_share") for line in lines]
    assert shares[1] == 1.0 > shares[2] > shares[3] > shares[4] and shares[5:] == [None] * 3
    exported = open_checkpoint(whole / "export").config
    sizes = {"mlp": 12, "q_per_kv": 1, "embed": 28}
    assert exported.sizes == {**runs.MODEL.sizes, **sizes}
    scores, plan = load_file(whole / "dimchop.safetensors"), Plan.from_json((whole / "plan.json").read_text())
    assert scores.keys() == plan.kept.keys() == sizes.keys()
    for axis, size in sizes.items():
        np.testing.assert_array_equal(plan.kept[axis], top(scores[axis], size))
        assert "DimCHOP" in plan.reasons[axis]
    check_stock(whole / "export")
    killed_and_finished(place, cut_off, POOLED, Death(STEP, 3, after=cut_off / "checkpoints_before_chop" / "2"))
    check_same(cut_off, whole)
    again = finished(place, whole, *POOLED)
    assert "dimchop: done before, skipped" in again and "starts" not in again


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            (*POOLED, "plan.kv_heads=1", "plan.merge_kv_heads=True"),
            "the optimizer's moments cannot follow the plan's merge_kv_heads",
        ),
        ((*POOLED, "plan.mlp=0", "plan.embed=0", "plan.q_per_kv=0"), "set plan.mlp, plan.embed"),
        ((*POOLED, "dimchop.steps=5"), "dimchop.start + dimchop.steps is 6, but masks are worn in the 5 steps of"),
        ((*MATRIX, "dimchop.start=5"), "masks are worn in the 8 steps of train.steps only"),
        ((*MATRIX, "train.steps_before_chop=2"), "train.steps_before_chop: with dimchop.mode 'matrix' nothing"),
    ],
)
def test_settings_that_do_not_fit(
    overrides: tuple[str, ...], said: str, place: runs.Place, tmp_path: pathlib.Path
) -> None:
    ended = runs.run(place, "train", place.arguments(tmp_path / "run", *overrides))
    assert ended.status == 2 and said in ended.stderr and ended.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
