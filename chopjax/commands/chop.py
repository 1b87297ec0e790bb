"""The plan applied file to file, without a device and a few tensors at a time: the folder `WORKDIR/student/`.

Only a refit, where the plan lists one, needs devices: it reads the plain chop and the source.
"""

import functools
import importlib.util
import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from chopjax import paths
from chopjax.chop.apply import chop_config, gather
from chopjax.chop.optimizer_state import refuse_edits
from chopjax.chop.plan import Plan
from chopjax.commands import calibration, refit, vocabulary
from chopjax.commands import plan as planning
from chopjax.commands.run import STUDENT, Run, begin
from chopjax.commands.settings import Settings
from chopjax.commands.stages import Stage
from chopjax.errors import UserError
from chopjax.hf import stock
from chopjax.hf.card import model_card
from chopjax.hf.checkpoint import Checkpoint
from chopjax.hf.families import Family, Tensor, target_family
from chopjax.hf.reading import read_leaf
from chopjax.hf.small_files import small_files
from chopjax.hf.source_files import CONFIG
from chopjax.hf.token_ids import padding_beyond, with_usable_padding
from chopjax.hf.writing import LazyTensor, copy_small_files, export_dtype, write_checkpoint
from chopjax.models.config import ModelConfig

STAGE = Stage("chop", (STUDENT,))
# Tensors in memory at one time, each made by a thread: turning them round takes longer than the disk does.
AT_ONCE = 4


def main(chosen: Settings) -> None:
    """Plans if that is not done, then chops."""
    run = begin(chosen, check)
    planning.make(run)
    make(run)


def check(run: Run) -> None:
    """Refuses, before scores are made, a plan that cannot be followed and a student that another program made.

    Raises:
        UserError: names the field, the file or the folder.
    """
    planning.check(run)
    run.stages.refuse_foreign(planning.STAGE, STAGE)


def make(run: Run) -> None:
    """Writes the chopped model, not yet healed, in the source's own dtypes.

    Raises:
        UserError: the plan edits weights after training steps, whose moments could not follow.
    """
    if run.settings.train.steps_before_chop:
        refuse_edits(run.plan)
    inputs = {"source": run.source_print, "plan": run.stages.digest("plan")}
    if fit := refit.asked(run.plan):
        refit.check_text(run, fit.rows)
        inputs |= {"calibration rows": calibration.said(run, fit.rows), "score.batch": str(run.settings.score.batch)}
    inputs["export.max_shard"] = str(run.settings.export.max_shard)
    run.stage(STAGE, inputs, functools.partial(_work, run))


def check_readable(run: Run) -> None:
    """Refuses, before anything slow, a student that stock `transformers` would not read: all of it but its weights.

    Raises:
        UserError: names the file, and what transformers says of it.
    """
    source, plan = run.source, planning.foreseen(run)
    if not run.writer or importlib.util.find_spec("transformers") is None:
        return
    config = chop_config(source.config, plan)
    family, words = target_family(source.family, config)[0], vocabulary.trimming(source, plan)
    raw = _config(source, family, config, words)
    with tempfile.TemporaryDirectory(prefix="chopjax-") as name:
        folder = pathlib.Path(name)
        (folder / CONFIG).write_text(json.dumps(raw), encoding="utf-8")
        copy_small_files(source.folder, folder, words.files)
        for finding in stock.findings(folder, config.vocab):
            if finding.severity == "error":
                raise UserError(
                    f"{source.folder}: {finding.subject} would be exported as it is, but {finding.message}; correct it "
                    "there"
                )


def _work(run: Run) -> None:
    fit = refit.asked(run.plan)
    folder = run.workdir / (refit.PLAIN if fit else STUDENT)
    if run.writer:
        if fit:
            paths.remove(folder)
        chop_files(run.source, run.plan, folder, run.settings.export.max_shard)
        for line in small_files(run.source.folder).left_out:
            run.say(f"chop: {line}")
        if (number := padding_beyond(run.source.raw_config, run.source.config.vocab)) is not None:
            run.say(f"chop: pad_token_id {number} has no row in the vocabulary, so null is written in its place")
    if fit:
        run.barrier()
        refit.make_student(run, fit, folder)


def chop_files(source: Checkpoint, plan: Plan, folder: pathlib.Path, max_shard_bytes: int) -> None:
    """Streams a checkpoint through a plan into another: `AT_ONCE` source tensors are in memory at a time.

    Raises:
        UserError: stock transformers could not load the result; `folder` exists; a tensor holds NaN or infinity; the
            tokenizer cannot be trimmed as the plan asks; the source changed meanwhile, and `folder` is of no use.
    """
    config = chop_config(source.config, plan)
    words = vocabulary.trimming(source, plan)
    family, note = target_family(source.family, config)
    tensors = [
        LazyTensor(
            tensor.name,
            export_dtype(source, tensor.path, None),
            tensor.shape,
            functools.partial(_chopped, source, plan, tensor),
        )
        for tensor in family.tensors(config)
    ]
    lines = planning.describe(plan)
    card = model_card(source.source, config, source.config, lines, notes=[*([note] if note else []), *words.notes])
    raw = _config(source, family, config, words)
    with source.unchanged():
        write_checkpoint(
            folder, tensors, raw, source.folder, card, max_shard_bytes, instead=words.files, at_once=AT_ONCE
        )


def _config(source: Checkpoint, family: Family, config: ModelConfig, words: vocabulary.Trimming) -> Mapping[str, Any]:
    """config.json of the student."""
    described = with_usable_padding(source.raw_config, source.config.vocab)
    return words.ids(family.config_to_hf(config, described, source.dtype))


def _chopped(source: Checkpoint, plan: Plan, tensor: Tensor) -> np.ndarray:
    """One tensor of the student, in the shape that it has in the file."""
    index = [slice(None)] * len(tensor.leaf.axes)
    if tensor.layer is None:
        return tensor.to_file(gather(read_leaf(source, tensor.path), tensor.leaf, plan))
    at = tensor.leaf.axes.index("layers")
    layer = plan.layers[tensor.layer]
    index[at] = slice(layer, layer + 1)
    part = gather(read_leaf(source, tensor.path, index), tensor.leaf, plan.of_layer(tensor.layer))
    return tensor.to_file(np.take(part, 0, axis=at))
