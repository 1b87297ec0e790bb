"""What goes with one index of each axis, counted by hand on a model of two layers."""

import numpy as np
import pytest

from chopjax.axes import AROUND
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import declare, shapes
from chopjax.score.pooling import AXES, pool

CONFIG = ModelConfig(
    layers=2, embed=3, kv_heads=2, q_per_kv=3, head_dim=4, mlp=5, vocab=7, positions=8, qkv_bias=True, norm="layer"
)
# Numbers of weights in one layer, by hand: q and o have 3 · 24, k and v 3 · 8, gate, up and down 3 · 5.
IN_LAYER = 2 * 72 + 2 * 24 + 3 * 15
COUNTS = {
    "layers": IN_LAYER,
    "mlp": 3 * 3,  # a column of gate and of up, a row of down
    "kv_heads": 2 * 3 * 4 + 2 * 3 * 12,  # its part of k and v, and of q and o for its three query heads
    "q_per_kv": 2 * 3 * 4,
    "embed": 2 * (2 * 24 + 2 * 8 + 3 * 5) + 2 * 7,  # a row or column of every matrix, and of both tables
}


def ones() -> dict[str, np.ndarray]:
    return {path: np.ones(shape) for path, shape in shapes(CONFIG).items()}


@pytest.mark.parametrize("axis", AXES)
def test_every_weight_that_goes_with_an_index_is_counted_once(axis: str) -> None:
    found = pool(ones(), declare(CONFIG), axis)
    assert found.shape == tuple(CONFIG.sizes[name] for name in (*AROUND[axis], axis))
    assert (found == COUNTS[axis]).all()


def test_norms_and_biases_do_not_count() -> None:
    values = {
        path: value if path.endswith(("kernel", "table")) else np.full_like(value, np.nan)
        for path, value in ones().items()
    }
    assert all(np.isfinite(pool(values, declare(CONFIG), axis)).all() for axis in AXES)


@pytest.mark.parametrize(
    ("path", "index", "where"),
    [
        ("layers/mlp/gate/kernel", (1, 0, 4), {"mlp": (1, 4), "embed": (0,), "layers": (1,)}),
        ("layers/mlp/down/kernel", (0, 2, 1), {"mlp": (0, 2), "embed": (1,), "layers": (0,)}),
        (
            "layers/attention/q/kernel",
            (1, 2, 0, 2, 3),
            {"kv_heads": (1, 0), "q_per_kv": (1, 0, 2), "embed": (2,), "layers": (1,)},
        ),
        (
            "layers/attention/o/kernel",
            (0, 1, 2, 3, 1),
            {"kv_heads": (0, 1), "q_per_kv": (0, 1, 2), "embed": (1,), "layers": (0,)},
        ),
        ("layers/attention/v/kernel", (1, 0, 1, 2), {"kv_heads": (1, 1), "embed": (0,), "layers": (1,)}),
        ("embed/table", (6, 2), {"embed": (2,)}),
        ("unembed/kernel", (1, 6), {"embed": (1,)}),
    ],
)
def test_one_weight_counts_where_it_lies(path: str, index: tuple, where: dict[str, tuple]) -> None:
    values = {name: np.zeros(shape) for name, shape in shapes(CONFIG).items()}
    values[path][index] = 2.5
    for axis in AXES:
        found = pool(values, declare(CONFIG), axis)
        assert found.sum() == (2.5 if axis in where else 0)
        if axis in where:
            assert found[where[axis]] == 2.5
