"""Devices of TPU slices that are not there, for the compiler to compile for."""

import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from chopjax.errors import UserError

KNOWN = ("v4", "v5e", "v5p", "v6e", "tpu7x")

# libtpu would ask a metadata server what machine this is, and let only one process of a machine in. Any valid
# accelerator type will do: the topology's name decides what is compiled for.
ENVIRONMENT = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices(name: str) -> list[jax.Device]:
    """The devices of a TPU slice such as "v5e:4x4", "v5p:2x2x2" or "v6e:4x4"; programs compile for them but do not run.

    What the process itself computes with is left as it is: its own devices should be chosen, or JAX_PLATFORMS=cpu be
    set, before JAX looks for TPUs.

    Raises:
        UserError: libtpu, which holds the compiler, is not installed; or there is no such slice.
    """
    if not re.fullmatch(rf"({'|'.join(KNOWN)}):\d+(x\d+)*", name):
        raise UserError(f"topology is {name!r}; give a kind of TPU and its grid, such as v5e:4x4 or v5p:2x2x2")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"topology {name}: compiling for TPUs needs libtpu; pip install libtpu, in the release that "
            "`pip install 'chopjax[tpu]'` picks for the installed jax"
        )
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # One chip of v4 is one device to JAX, as it is when run.
    chip = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **chip).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"topology {name}: libtpu knows no such slice ({reason}); give one such as v5e:4x4") from error
