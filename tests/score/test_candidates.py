"""Which layers go by given losses, without any model."""

import math
import subprocess
import sys

import numpy as np
import pytest

from chopjax.chop.build import build_plan
from chopjax.chop.config import PlanConfig
from chopjax.errors import UserError
from chopjax.score import candidates

LLAMA_3_1_8B = {"layers": 32, "embed": 4096, "kv_heads": 8, "q_per_kv": 4, "head_dim": 128, "mlp": 14336,
                "vocab": 128256, "positions": 131072}  # fmt: skip


def test_llama_without_sixteen_layers_from_the_sixteenth() -> None:
    """Layers 16 to 31, counted from 1, of Llama-3.1-8B (arXiv 2408.11796): 0 to 14 and 31 stay, counted from 0."""
    kept = (*range(15), 31)
    assert candidates.without_block(range(32), 15, 16) == kept
    losses = np.full((2, 17), 60.0)
    losses[:, 15] = 40.0
    sums = {"without_block/next_token/16": losses, "scored": np.array([10.0, 20.0])}
    means = candidates.mean_losses(sums, "next_token", 16)
    np.testing.assert_allclose(means, [4.0] * 15 + [80 / 30] + [4.0])
    plan = build_plan(PlanConfig(layers_by="leave_block_out", remove_layers=16), LLAMA_3_1_8B, {"blocks": means})
    assert plan.layers == list(kept)


def test_losses_that_are_not_finite_count_as_the_worst() -> None:
    sums = {"without_one/kl": np.array([[1.0, math.nan, math.inf], [3.0, 1.0, 0.0]]), "scored": np.array([1.0, 1.0])}
    np.testing.assert_array_equal(candidates.mean_losses(sums, "kl"), [2.0, math.inf, math.inf])


def test_one_by_one_scores_again_and_takes_the_lowest() -> None:
    seen = []

    def losses(order: tuple[int, ...]) -> np.ndarray:
        seen.append(order)
        # The sum of the layers that stay; NaN without layer 5, which is therefore never taken.
        return np.array(
            [math.nan if layer == 5 else sum(other for other in order if other != layer) for layer in order]
        )

    assert candidates.one_by_one(6, 2, losses, keep={4}) == ((3, 2), (12.0, 10.0))
    assert seen == [(0, 1, 2, 3, 4, 5), (0, 1, 2, 4, 5)]


def test_ties_take_the_lowest_layer() -> None:
    assert candidates.one_by_one(4, 2, lambda order: np.zeros(len(order)), keep=[0]).layers == (1, 2)


@pytest.mark.parametrize(
    ("remove", "keep", "said"),
    [
        (4, (), "plan.remove_layers: 4 of 4 layers; use 0 to 3"),
        (3, (1, 2), "3 of 4 layers; use 0 to 2"),
        (1, (4,), "layer 4 is to stay, but the layers are 0 to 3"),
    ],
)
def test_too_many_layers_are_refused(remove: int, keep: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        candidates.one_by_one(4, remove, lambda order: np.zeros(len(order)), keep)


def test_imports_without_jax() -> None:
    code = "import sys, chopjax.score.candidates; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
