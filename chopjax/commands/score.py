"""Passes over calibration rows: the statistics from which units are ranked, in one portable file."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from chopjax import files
from chopjax.chop.build import axes_to_score, layers_by_score
from chopjax.commands import calibration
from chopjax.commands.run import Run, begin
from chopjax.commands.settings import Settings
from chopjax.commands.stages import Stage
from chopjax.errors import UserError
from chopjax.models.block import Masks
from chopjax.models.decoder import Params
from chopjax.score.activations import score_sums
from chopjax.score.candidates import LossMetric, without_name
from chopjax.score.file import HALVES, ScoreFile
from chopjax.score.removal import leave_out
from chopjax.score.stability import split_half, too_few
from chopjax.score.weights import taylor_sums
from chopjax.sharding.mesh import replicated

STAGE = Stage("score", ("scores",))
FILE = "scores.safetensors"

# Criteria of widths and layers that look at weights alone, or at nothing.
WITHOUT_TEXT = frozenset({"magnitude", "random"})

Sums = dict[str, np.ndarray]


def main(chosen: Settings) -> None:
    """Scores the source and writes `WORKDIR/scores/`."""
    make(begin(chosen, check))


def check(run: Run) -> None:
    """Refuses score files that could not be used, before anything slow.

    Raises:
        UserError: one is damaged, of another model, or lacks what the plan asks for; or two hold the same rows.
    """
    if run.settings.score.files:
        _merged(run)


def make(run: Run) -> None:
    """Writes the score file, unless it is there already, and says how far its rankings can be trusted.

    Raises:
        UserError: a score file of another model.
    """
    run.stage(STAGE, inputs(run), functools.partial(_work, run))
    found = read(run).sums
    chosen = run.settings.plan
    stability = split_half(found, chosen.over_batch, chosen.over_sequence)
    if stability:
        run.say("score: split-half rank correlation: " + ", ".join(f"{axis} {r:.3f}" for axis, r in stability.items()))
    ranked = set(axes_to_score(chosen, run.source.config.sizes)) | ({"layers"} if layers_by_score(chosen) else set())
    used = stability if run.settings.search.wanted else {axis: r for axis, r in stability.items() if axis in ranked}
    for line in too_few(used) if used or not stability else ():
        run.say(f"score: warning: {line}")


def ranks(run: Run) -> bool:
    """Whether the plan ranks any units, by the score file or by the weights."""
    chosen = run.settings.plan
    return not chosen.file and (_ranked_widths(run) or layers_by_score(chosen) or _reads_text(run))


def needed(run: Run) -> bool:
    """Whether the plan reads the score file, and so needs passes over text."""
    chosen = run.settings.plan
    if chosen.file:
        return False
    widths = _ranked_widths(run) and chosen.widths_by not in WITHOUT_TEXT
    layers = layers_by_score(chosen) and chosen.layers_by not in WITHOUT_TEXT
    return widths or layers or _reads_text(run)


def _ranked_widths(run: Run) -> bool:
    pooled = run.settings.dimchop.mode == "pooled"
    return not pooled and bool(axes_to_score(run.settings.plan, run.source.config.sizes))


def _reads_text(run: Run) -> bool:
    """Whether tokens are chosen by how often they occur, or sizes are searched for."""
    return run.settings.search.wanted or 0 < run.settings.plan.vocab < run.tokens


def read(run: Run) -> ScoreFile:
    """The score file that `make` wrote."""
    return ScoreFile.load(run.workdir / "scores" / FILE)


def inputs(run: Run) -> dict[str, Any]:
    """What decides the scores."""
    found = run.settings.dotted("score") | {"source": run.source_print, "statistics": passes(run.settings)}
    found["rows"] = calibration.said(run)
    found |= {f"{name} (contents)": files.fingerprint(name) for name in run.settings.score.files}
    for name in ("data.length", "train.compute_dtype", "seed"):
        found[name] = run.settings.dotted()[name]
    return found


def passes(chosen: Settings) -> list[str]:
    """The passes besides that of activations, which is always made, that the plan's or the search's criteria ask for.

    Each is named by the sums that it makes: `taylor` with the axis behind a slash, `without_one/METRIC` as it is.
    """
    wanted = chosen.plan
    layers_by = wanted.layers_by if layers_by_score(wanted) or chosen.search.wanted else ""
    found = ["taylor"] if "taylor" in (wanted.widths_by, layers_by) else []
    by_loss = wanted.metric in get_args(LossMetric)
    return found + ([without_name(wanted.metric)] if by_loss and layers_by in ("leave_one_out", "best") else [])


def _work(run: Run) -> None:
    scored = _merged(run) if run.settings.score.files else _scored(run)
    if run.writer:
        folder = run.workdir / "scores"
        folder.mkdir(parents=True, exist_ok=True)
        scored.save(folder / FILE)


def _merged(run: Run) -> ScoreFile:
    """The files that the config names, added up."""
    names = run.settings.score.files
    found = [ScoreFile.load(name) for name in names]
    for one, name in zip(found, names, strict=True):
        one.check_model(run.source_print, name)
    merged = ScoreFile.merge(found, names)
    for wanted in passes(run.settings):
        if not any(name == wanted or name.startswith(f"{wanted}/") for name in merged.sums):
            raise UserError(f"{names[0]}: lacks {wanted}, which the plan's criteria ask for; score again with them set")
    return merged


def _scored(run: Run) -> ScoreFile:
    run.check_mesh(run.source.config)
    params = run.load(run.source)
    totals = activations(run, params)
    for name in passes(run.settings):
        if name == "taylor":
            totals |= _taylor(run, params)
        else:
            metric: Any = name.rpartition("/")[2]
            batches = calibration.calibration(run, run.settings.score.rows_for_losses)
            totals |= leave_out(run.source.config, params, batches, 1, metric, **loss_options(run))
    return ScoreFile(
        sums=totals,
        model=run.source_print,
        data=(calibration.said(run),),
        sizes=run.source.config.sizes,
        source=run.settings.source,
        dtype=str(run.compute_dtype),
        length=run.data.length,
    )


def activations(run: Run, params: Params, masks: Masks | None = None) -> Sums:
    """The statistics of activations over all calibration rows, of the source or of what masks leave of it."""
    sums_of = functools.partial(score_sums, run.source.config, constrain=run.constrain)
    # Whole on every process: else those of a `tensor` axis that spans processes could not be written.
    step = jax.jit(sums_of, out_shardings=replicated(run.mesh))
    return summed(run, lambda batch, number: step(params, calibration.rows_of(batch), batch["half"], masks=masks or {}))


def _taylor(run: Run, params: Params) -> Sums:
    sums_of = functools.partial(taylor_sums, run.source.config, **loss_options(run))
    step = jax.jit(sums_of, out_shardings=replicated(run.mesh))
    return summed(run, lambda batch, number: step(params, batch, jnp.int32(number % HALVES)))


def loss_options(run: Run) -> dict[str, Any]:
    """How losses are computed on this run's mesh."""
    return {
        "chunk": run.settings.loss.chunk,
        "vocab_tokens": run.tokenizer.vocab,
        "constrain": run.constrain,
    }


def summed(run: Run, sums_of: Callable[[calibration.Batch, int], Mapping[str, Array]]) -> Sums:
    """Sums over all calibration batches, in float64 (integers in int64) on the host."""
    totals: Sums = {}
    previous: Mapping[str, Array] = {}
    # Reading sums waits for their batch, so that at most two batches are under way at a time.
    for number, batch in enumerate(calibration.calibration(run)):
        found = sums_of(batch, number)
        _add(totals, previous)
        previous = found
    _add(totals, previous)
    return totals


def _add(totals: Sums, sums: Mapping[str, Array]) -> None:
    for name, value in sums.items():
        host = np.asarray(value)
        wide = host.astype(np.int64 if host.dtype.kind in "iu" else np.float64)
        totals[name] = totals[name] + wide if name in totals else wide
