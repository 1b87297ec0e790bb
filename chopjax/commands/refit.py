"""The refit of a plain chop to the uncut model on calibration rows, and its export: the folder `WORKDIR/student/`."""

import pathlib

import jax
import numpy as np

from chopjax import paths
from chopjax.chop.edits import Refit
from chopjax.chop.plan import Plan
from chopjax.chop.refit import refit
from chopjax.commands import calibration
from chopjax.commands.run import STUDENT, Run
from chopjax.errors import UserError
from chopjax.hf.checkpoint import Checkpoint, open_checkpoint
from chopjax.hf.reading import load_params
from chopjax.hf.writing import export_params
from chopjax.sharding.mesh import param_shardings

# The plain chop, for as long as the refit takes.
PLAIN = ".chopped"


def asked(plan: Plan) -> Refit | None:
    """The refit that a plan lists, if it lists one."""
    return next((edit for edit in plan.edits if isinstance(edit, Refit)), None)


def check_rows(rows: int, batch: int) -> None:
    """Refuses too few rows for the two halves of batches between which ridges are compared.

    Raises:
        UserError: names the fields.
    """
    if rows <= batch:
        raise UserError(
            f"plan.refit: {rows} calibration rows are one batch of {batch}, which cannot be halved; "
            "raise score.rows or lower score.batch"
        )


def check_text(run: Run, rows: int) -> None:
    """Refuses a text with too few rows for that, however many are asked for.

    Raises:
        UserError: says how many there are.
    """
    there, batch = calibration.rows_read(run, rows), run.settings.score.batch
    if there < rows and there <= batch:
        raise UserError(
            f"plan.refit: the text has only {there} calibration rows, one batch of {batch}, which cannot be halved; "
            "lower score.batch, or give more text"
        )


def make_student(run: Run, wanted: Refit, plain: pathlib.Path) -> None:
    """Fits the model in the folder `plain` and writes the result, dtype by dtype as that is, to `WORKDIR/student/`."""
    chopped = open_checkpoint(plain)
    for checkpoint in (run.source, chopped):
        run.check_mesh(checkpoint.config)
    batches = [calibration.rows_of(batch) for batch in calibration.calibration(run, wanted.rows)]
    models = [(checkpoint.config, _load(run, checkpoint)) for checkpoint in (run.source, chopped)]
    found = refit(models[0], models[1], run.plan, batches, wanted.ridge, run.constrain)
    kept = int(np.isinf(found.ridges).sum())
    run.say(f"chop: refit: {found.ridges.size - kept} of {found.ridges.size} projections fitted anew")
    for place, name in enumerate(("after attention", "after the MLP")):
        shares = (np.mean(errors[:, place]) for errors in (found.before, found.after))
        before, after = (f"{share:.3%}" for share in shares)
        run.say(f"chop: refit: mean squared error of the residual stream {name}: {before} -> {after} of its square")
    card = (plain / "README.md").read_text(encoding="utf-8")
    export_params(
        run.workdir / STUDENT,
        found.params,
        chopped.config,
        chopped,
        max_shard_bytes=run.settings.export.max_shard,
        card=card,
        write=run.writer,
    )
    if run.writer:
        paths.remove(plain)


def _load(run: Run, checkpoint: Checkpoint) -> dict[str, jax.Array]:
    """Parameters on the mesh, each in the dtype that it is stored in."""
    return load_params(checkpoint, param_shardings(checkpoint.config, run.mesh, run.fallbacks))
