"""What compilers are told besides the program."""

from collections.abc import Mapping

from jax.sharding import Mesh

# Of a core's own 128 MiB, what one fused operation may take; by default 16. Larger tiles of weights are then read less
# often: the compiler's cycles for the distillation of 8B into 4.5B on 16 chips of v5e fall from 1.94e9 to 1.78e9. Kinds
# whose cores have less, or whose steps nobody has compiled so, keep the default.
_VMEM = {"xla_tpu_scoped_vmem_limit_kib": "65536"}
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "TPU v5 lite": _VMEM,
    "TPU v5e": _VMEM,
    "TPU v6 lite": _VMEM,
    "TPU v6e": _VMEM,
}


def options(mesh: Mesh) -> dict[str, str] | None:
    """The compiler's options for the steps of a run on this mesh; None for its own defaults."""
    return dict(OPTIONS.get(mesh.devices.flat[0].device_kind, {})) or None
