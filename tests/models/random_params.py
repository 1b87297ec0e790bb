"""Random parameters without a compilation for each shape, as drawing them with jax would cost."""

import jax.numpy as jnp
import numpy as np

from chopjax.axes import unflatten
from chopjax.models.config import LayerKind, ModelConfig
from chopjax.models.decoder import Params
from chopjax.models.parameters import shapes

# Odd sizes, 9 query heads on 3 KV heads, a window in the middle layer.
WINDOWED = ModelConfig(
    layers=3,
    embed=15,
    kv_heads=3,
    q_per_kv=3,
    head_dim=6,
    mlp=11,
    vocab=37,
    positions=64,
    kinds=(LayerKind(), LayerKind(window=4)),
    kind_of_layer=(0, 1, 0),
)


def random_params(config: ModelConfig, seed: int = 0, scale: float = 0.4) -> Params:
    """float32 parameters with nothing at its usual start: norms and biases are random too."""
    rng = np.random.default_rng(seed)
    flat = {}
    for path, shape in shapes(config).items():
        centre = float(path.endswith("scale") and config.norm != "layer_1p")
        flat[path] = jnp.asarray(centre + scale * rng.standard_normal(shape), jnp.float32)
    return unflatten(flat)
