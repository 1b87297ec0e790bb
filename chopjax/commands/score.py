"""Forward passes over calibration rows: scores for the axes whose kept indices are chosen by score."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from chopjax import files
from chopjax.chop.build import Scores, axes_to_score
from chopjax.commands.run import Run, begin
from chopjax.commands.settings import Settings
from chopjax.commands.stages import Stage
from chopjax.data.batches import one_pass
from chopjax.score.activations import finish, score_sums
from chopjax.sharding.mesh import place_batch, replicated

STAGE = Stage("score", ("scores",))
SUMS = "sums.safetensors"


def main(chosen: Settings) -> None:
    """Scores the source and writes `WORKDIR/scores/`."""
    make(begin(chosen))


def make(run: Run) -> None:
    """Writes summed statistics, float32, and where they are from; skipped if they are there already."""
    inputs = run.settings.dotted("score") | {
        "source": run.source_print,
        "rows": [part.digest for part in run.data.parts],
        "data.length": run.data.length,
        "train.compute_dtype": run.settings.train.compute_dtype,
    }
    run.stage(STAGE, inputs, functools.partial(_work, run))


def needed(run: Run) -> bool:
    """Whether the plan asks for any score."""
    return not run.settings.plan.file and bool(axes_to_score(run.settings.plan, run.source.config.sizes))


def read(run: Run) -> Scores:
    """The scores that `make` wrote."""
    return finish(load_file(run.workdir / "scores" / SUMS))


def _work(run: Run) -> None:
    run.check_mesh(run.source.config)
    chosen, parts = run.settings.score, [rows for rows, _ in run.data.mixture()]
    params = run.load(run.source)
    sums_of = functools.partial(score_sums, run.source.config, constrain=run.constrain)
    # Whole on every process: else those of a `tensor` axis that spans processes could not be written.
    step = jax.jit(sums_of, out_shardings=replicated(run.mesh))
    total: dict[str, jax.Array] | None = None
    rows = 0
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    for batch in one_pass(parts, chosen.batch, limit=chosen.rows, **share):
        sums = step(params, place_batch(run.mesh, batch))
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        rows += chosen.batch
    folder = run.workdir / "scores"
    if run.writer:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: np.asarray(value) for name, value in (total or {}).items()}, folder / SUMS)
        provenance = {"rows": min(rows, chosen.rows), "length": run.data.length, "source": run.settings.source}
        files.write_json(folder / "scores.json", provenance)
