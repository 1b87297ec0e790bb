"""Random parameters without a compilation for each shape, as drawing them with jax would cost."""

import jax.numpy as jnp
import numpy as np

from chopjax.axes import unflatten
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Params
from chopjax.models.parameters import shapes


def random_params(config: ModelConfig, seed: int = 0, scale: float = 0.4) -> Params:
    """float32 parameters with nothing at its usual start: norms and biases are random too."""
    rng = np.random.default_rng(seed)
    flat = {}
    for path, shape in shapes(config).items():
        centre = float(path.endswith("scale") and config.norm != "layer_1p")
        flat[path] = jnp.asarray(centre + scale * rng.standard_normal(shape), jnp.float32)
    return unflatten(flat)
