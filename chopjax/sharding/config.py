"""The shape of the mesh. Apart from the mesh itself, so that a config is read without jax."""

import dataclasses

from chopjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh.

    Attributes:
        data: copies of the model that each see their own rows.
        fsdp: parts into which parameters are cut; each part also sees its own rows.
        tensor: parts into which heads, MLP neurons and vocabulary are cut.
        fallbacks: axis names, such as `kv_heads`, that may fall back to the next rule or to copies where their size
            does not divide; without permission that is an error.

    One of the three sizes may be -1: all devices that the other two leave.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    fallbacks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            if size < 1 and size != -1:
                raise UserError(f"mesh.{name} is {size}; give 1 or more, or -1 for all devices that are left")
        if list(sizes.values()).count(-1) > 1:
            raise UserError("more than one of mesh.data, mesh.fsdp and mesh.tensor is -1; give the others a size")
