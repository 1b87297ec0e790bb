"""What the processes of a run agree on."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def in_all(mine: bool) -> bool:
    """Whether it is so in all processes, which all ask here."""
    if jax.process_count() == 1:
        return mine
    return bool(np.all(multihost_utils.process_allgather(np.asarray(mine))))
