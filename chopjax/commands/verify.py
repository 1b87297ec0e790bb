"""Would a stock reader load the folder, is what it holds sound, and does it say what the run's own weights say?"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from chopjax.commands import heal
from chopjax.commands.run import EXPORT, Run, begin
from chopjax.commands.settings import Settings
from chopjax.commands.stages import Stage
from chopjax.errors import UserError
from chopjax.hf import stock
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.verify import verify_folder
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import forward, logits
from chopjax.sharding.mesh import replicated

STAGE = Stage("verify", ())

# Tokens on which logits are compared, modulo the vocabulary.
TOKENS = tuple(int(token) for token in np.random.default_rng(0).integers(0, 2**20, 16))

# Largest difference of float32 logits over the largest logit, between two implementations of the same model.
STOCK_TOLERANCE = 1e-4

# The like of the export's weights and the run's own, rounded as the export's are: the same numbers, the same program.
TOLERANCE = 1e-5


def main(chosen: Settings) -> None:
    """Verifies the export of a run, or, where only a folder is named, that folder.

    Raises:
        UserError: a finding that a reader would stumble over.
    """
    if chosen.source and chosen.workdir:
        run = begin(chosen)
        check(run)
    else:
        _report(chosen.export.folder, print)


def make(run: Run) -> None:
    """`check`, unless this export was found to be sound before."""
    run.stage(STAGE, {"export": run.stages.digest("export")}, lambda: check(run))


def check(run: Run) -> None:
    """Verifies the exported folder, and its logits against those of the run's own weights, rounded likewise.

    What rounding itself does to the logits is said: little to most models, a good deal to one that has hardly learnt.
    """
    folder = run.export_folder
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; export first, or name one with export.folder (default {EXPORT})")
    _report(str(folder), run.say)
    exported = open_checkpoint(folder)
    _, params = heal.trained_params(run)
    exact = _logits(run, run.student.config, params)
    ours = _logits(run, run.student.config, _rounded(params, exported.dtype))
    theirs = _logits(run, exported.config, run.load(exported, jnp.dtype(jnp.float32)))
    difference = _difference(ours, theirs)
    if not difference <= TOLERANCE:
        raise UserError(f"{folder}: its logits differ by {difference:.2g} of the largest from the run's; export again")
    said = f"rounding to {exported.dtype} moves them by {_difference(exact, ours):.1e} of the largest"
    run.say(
        f"verify: {folder} is sound; its logits are the run's" + ("" if exported.dtype == "float32" else f"; {said}")
    )
    if run.writer and stock.available(exported):
        difference = stock.difference(exported, TOKENS, theirs[0])
        if not difference <= STOCK_TOLERANCE:
            raise UserError(f"{folder}: transformers' logits differ by {difference:.2g} of the largest from ours")
        run.say(f"verify: transformers' logits are within {difference:.1e} of ours")


def _rounded(params: dict, dtype: str) -> dict:
    """Parameters to the nearest numbers of a dtype; in two programs, since XLA would leave out both casts of one."""
    for there in (dtype, "float32"):
        params = jax.jit(lambda params, there=there: jax.tree.map(lambda leaf: leaf.astype(there), params))(params)
    return params


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest, over the largest number of `one`."""
    return float(np.abs(one - other).max() / np.abs(one).max())


def _logits(run: Run, config: ModelConfig, params: dict) -> np.ndarray:
    """Logits of a few random tokens, from parameters on the mesh, on every host."""
    tokens = (np.asarray(TOKENS, np.int32) % config.vocab)[None]

    # Accelerators would make float32 products of TF32 or bfloat16 parts, and so say something else than stock readers.
    with jax.default_matmul_precision("highest"):
        return np.asarray(_forward(config, replicated(run.mesh))(params, tokens))


@functools.cache
def _forward(config: ModelConfig, sharding: jax.sharding.Sharding) -> Callable[[dict, np.ndarray], jax.Array]:
    """One program for all weights of a config: XLA takes long over exact products on GPUs."""

    def forwarded(params: dict, tokens: jax.Array) -> jax.Array:
        return logits(config, params, forward(config, params, tokens).hidden)

    return jax.jit(forwarded, out_shardings=sharding)


def _report(folder: str, say: Callable[[str], None]) -> None:
    findings = verify_folder(folder)
    errors = [finding for finding in findings if finding.severity == "error"]
    for finding in findings:
        if finding is not (errors[0] if errors else None):
            say(str(finding))
    if errors:
        raise UserError(f"{folder}: {errors[0].subject}: {errors[0].message}")
    say(f"verify: {folder}: config, index, tokenizer, dtypes and values are sound")
