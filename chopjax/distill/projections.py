"""Learned matrices from the student's width to the teacher's, and where they start."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from chopjax.axes import unflatten
from chopjax.distill.matching import Matching, declare_projections, projection_sizes


def init_projections(matching: Matching, key: Array) -> dict[str, dict[str, dict[str, Array]]]:
    """float32 projections as a nested dict under `projections`, to be merged with a student's; empty without any.

    Where a plan says which of the teacher's channels the student's were, each starts as the 0/1 matrix that puts them
    back in their places; where the widths are equal, as the identity; else it is drawn, normal with variance 1 / embed.
    """
    leaves = declare_projections(matching)
    sizes = projection_sizes(matching)
    start = _known_start(matching)
    made = {}
    for path, leaf in leaves.items():
        key, own = jax.random.split(key)
        shape = leaf.shape(sizes)
        if start is None:
            made[path] = jax.random.normal(own, shape, jnp.float32) * matching.student.embed**-0.5
        else:
            made[path] = jnp.asarray(np.broadcast_to(start, shape))
    return unflatten(made)


def _known_start(matching: Matching) -> Float[np.ndarray, "embed teacher_embed"] | None:
    channels = matching.kept_embed
    if channels is None and matching.student.embed == matching.teacher.embed:
        channels = tuple(range(matching.student.embed))
    return None if channels is None else np.eye(matching.teacher.embed, dtype=np.float32)[list(channels)]
