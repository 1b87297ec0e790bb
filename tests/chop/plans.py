"""Small models and random plans for them."""

import numpy as np
from hypothesis import strategies as st

from chopjax.axes import AROUND
from chopjax.chop.plan import Plan
from chopjax.models.config import LayerKind, ModelConfig

ROTARY = ModelConfig(
    layers=5, embed=14, kv_heads=3, q_per_kv=3, head_dim=6, mlp=11, vocab=23, positions=32, qkv_bias=True, tied=True,
    qk_norm=True, kinds=(LayerKind(), LayerKind(3)), kind_of_layer=(0, 1, 1, 0, 1),
)  # fmt: skip
CENTRED = ModelConfig(
    layers=4, embed=13, kv_heads=2, q_per_kv=2, head_dim=4, mlp=9, vocab=19, positions=32, norm="layer_1p",
    activation="relu2", gated=False, qkv_bias=True, o_bias=True, mlp_bias=True,
)  # fmt: skip


@st.composite
def plans(draw: st.DrawFn, config: ModelConfig) -> Plan:
    """A random plan that cuts any combination of axes, in any order of indices that is allowed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cut = draw(st.sets(st.sampled_from(sorted(AROUND)), min_size=1))
    least = {"vocab": 2}
    counts = {axis: int(rng.integers(least.get(axis, 1), config.sizes[axis] + 1)) for axis in AROUND if axis in cut}
    kept = {}
    for axis, count in counts.items():
        around = [counts.get(name, config.sizes[name]) for name in AROUND[axis]]
        rows = [rng.permutation(config.sizes[axis])[:count] for _ in range(int(np.prod(around)))]
        rows = [np.sort(row) for row in rows] if axis == "layers" else rows
        rows = [_words(rows[0])] if axis == "vocab" else rows
        kept[axis] = np.asarray(rows, np.int32).reshape(*around, count)
    return Plan(dict(config.sizes), kept)


def _words(drawn: np.ndarray) -> np.ndarray:
    """So many ascending ids, among them 1 and 2, which the `config.json` of test checkpoints names."""
    others = drawn[~np.isin(drawn, (1, 2))]
    return np.sort(np.concatenate([(1, 2), others[: len(drawn) - 2]]))
