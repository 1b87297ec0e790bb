"""The healed model as a stock Hugging Face folder."""

import functools
from typing import Any

from chopjax import paths
from chopjax.commands import described, export_folder, heal, vocabulary
from chopjax.commands import plan as planning
from chopjax.commands.run import Run, begin
from chopjax.commands.settings import Settings
from chopjax.commands.stages import Stage
from chopjax.hf.card import model_card
from chopjax.hf.families import target_family
from chopjax.hf.writing import export_params
from chopjax.train import metrics


def main(chosen: Settings) -> None:
    """Exports the newest checkpoint of a run that was trained."""
    make(begin(chosen, check))


def check(run: Run) -> None:
    """Refuses, before anything slow, an `export.folder` that cannot be written.

    Raises:
        UserError: see `export_folder.check`; or the folder is there and was not made by this run.
    """
    export_folder.check(run.settings, run.writer)
    run.stages.refuse_foreign(stage(run))


def make(run: Run) -> None:
    """Writes `export.folder`, streamed and atomically.

    Raises:
        UserError: the run was not trained yet; the folder is there and was not made by this run.
    """
    inputs = run.settings.dotted("export") | {"train": run.stages.digest("train")}
    run.stage(stage(run), inputs, functools.partial(_work, run))


def stage(run: Run) -> Stage:
    """The stage, whose output need not lie in the workdir."""
    return Stage("export", (paths.relative(run.export_folder, run.workdir),))


def _work(run: Run) -> None:
    chosen, config = run.settings.export, run.student.config
    steps, params = heal.trained_params(run)
    dtype = None if chosen.dtype == "source" else chosen.dtype
    note = target_family(run.source.family, config)[1]
    notes = [*([note] if note else []), *vocabulary.trimming(run.source, run.plan).notes]
    if run.settings.dimchop.mode == "matrix":
        notes.append(f"DimCHOP: {run.settings.dimchop.share:.0%} of the output dimensions of every matrix are zero.")
    card = model_card(
        run.settings.source,
        config,
        run.source.config,
        planning.describe(run.plan),
        described.training(run.settings, steps, run.student_data.length),
        _losses(run),
        notes,
    )
    # Like the student, which has the tokenizer and the ids that belong to its words.
    export_params(run.export_folder, params, config, run.student, dtype, chosen.max_shard, card)
    run.say(f"export: {run.export_folder}" + (f" ({note})" if note else ""))


def _losses(run: Run) -> dict[str, float]:
    """The last held-out figures, or where there are none the last training loss."""
    lines = metrics.read(run.workdir / "metrics.jsonl")
    heldout = [line for line in lines if "heldout_perplexity" in line]
    chosen: dict[str, Any] = heldout[-1] if heldout else lines[-1] if lines else {}
    return {name: value for name, value in chosen.items() if name.startswith("heldout_") or name == "loss"}
