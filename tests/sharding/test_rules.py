"""Axis names to mesh axes, without a mesh."""

import subprocess
import sys

import pytest

from chopjax.errors import UserError
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import declare
from chopjax.sharding.rules import MESH_AXES, MeshConfig, assign, check

Q = ("layers", "embed", "kv_heads", "q_per_kv", "head_dim")
K = ("layers", "embed", "kv_heads", "head_dim")
MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def test_rules() -> None:
    assert assign(Q, (5, 8, 4, 3, 7), MESH)[0] == ((), ("fsdp",), ("tensor",), (), ())
    assert assign(("vocab", "embed"), (6, 4), MESH)[0] == (("tensor",), ("fsdp",))
    assert assign(("layers", "embed"), (3, 4), MESH) == (((), ("fsdp",)), ())


def test_batch_takes_fsdp_before_embed() -> None:
    assert assign(("batch", "length", "embed"), (4, 3, 7), MESH)[0] == (("data", "fsdp"), (), ())


def test_context_splits_the_length_of_rows_and_what_fsdp_splits_of_parameters() -> None:
    mesh = {"data": 2, "fsdp": 2, "context": 3, "tensor": 1, "expert": 1}
    assert assign(("batch", "length", "embed"), (4, 9, 7), mesh)[0] == (("data", "fsdp"), ("context",), ())
    assert assign(("vocab", "embed"), (5, 12), mesh)[0] == ((), ("fsdp", "context"))
    with pytest.raises(UserError, match="length of size 10 .* 3 equal parts of mesh.context; choose a length"):
        assign(("batch", "length"), (4, 10), mesh)


def test_one_mesh_axis_is_given_once() -> None:
    assert assign(("mlp", "vocab"), (4, 4), MESH)[0] == (("tensor",), ())


def test_nothing_is_split_over_one_device() -> None:
    assert assign(Q, (1, 7, 3, 5, 2), {"data": 8, "fsdp": 1, "tensor": 1})[0] == ((),) * 5


def test_indivisible_is_refused_with_the_mend() -> None:
    with pytest.raises(UserError) as error:
        assign(Q, (1, 8, 3, 4, 2), MESH, leaf="layers/attention/q/kernel")
    message = str(error.value)
    for part in ("layers/attention/q/kernel", "kv_heads of size 3", "2 equal", "mesh.fallbacks=('kv_heads',)"):
        assert part in message
    assert "\n" not in message
    with pytest.raises(UserError, match="batch of size 6 .* 4 equal parts of mesh.data x mesh.fsdp"):
        assign(("batch",), (6,), MESH)


@pytest.mark.parametrize(
    ("names", "sizes", "spec", "taken"),
    [
        (Q, (1, 8, 3, 4, 2), ((), ("fsdp",), (), ("tensor",), ()), ("kv_heads -> q_per_kv",)),
        (Q, (1, 8, 3, 5, 2), ((), ("fsdp",), (), (), ()), ("kv_heads -> replicated",)),
        (K, (1, 8, 3, 2), ((), ("fsdp",), (), ()), ("kv_heads -> replicated",)),
        (Q, (1, 8, 4, 4, 2), ((), ("fsdp",), ("tensor",), (), ()), ()),
    ],
)
def test_permitted_fallback(names, sizes, spec, taken) -> None:
    assert assign(names, sizes, MESH, ("kv_heads",)) == (spec, taken)


def test_fallback_of_one_axis_permits_no_other() -> None:
    with pytest.raises(UserError, match="axis mlp of size 5"):
        assign(("embed", "mlp"), (8, 5), MESH, ("kv_heads", "embed"))


def test_check_names_the_first_leaf() -> None:
    config = ModelConfig(layers=2, embed=8, kv_heads=2, q_per_kv=1, head_dim=4, mlp=7, vocab=12, positions=9)
    leaves = {path: leaf.axes for path, leaf in declare(config).items()}
    check(leaves, config.sizes, MESH, ("mlp",))
    with pytest.raises(UserError, match="^layers/mlp/gate/kernel: axis mlp of size 7"):
        check(leaves, config.sizes, MESH)


@pytest.mark.parametrize(
    ("config", "devices", "shape"),
    [
        (MeshConfig(), 8, (1, 8, 1)),
        (MeshConfig(data=-1, fsdp=2, tensor=2), 8, (2, 2, 2)),
        (MeshConfig(data=1, fsdp=3, tensor=2), 6, (1, 3, 2)),
    ],
)
def test_mesh_shape(config: MeshConfig, devices: int, shape: tuple[int, ...]) -> None:
    found = config.shape(devices)
    assert tuple(found) == MESH_AXES
    assert (found["data"], found["fsdp"], found["tensor"], found["context"], found["expert"]) == (*shape, 1, 1)


def test_mesh_refuses() -> None:
    with pytest.raises(UserError, match="mesh.tensor=3 do not make up the 8 devices"):
        MeshConfig(tensor=3).shape(8)
    with pytest.raises(UserError, match="4 devices"):
        MeshConfig(data=1, fsdp=2).shape(4)
    with pytest.raises(UserError, match="more than one"):
        MeshConfig(data=-1)
    with pytest.raises(UserError, match="mesh.data is 0"):
        MeshConfig(data=0)
    with pytest.raises(UserError, match="mesh.context is -2"):
        MeshConfig(context=-2)
    with pytest.raises(UserError, match="mesh.expert is 2, but no supported model has experts"):
        MeshConfig(expert=2)
    with pytest.raises(UserError, match="mesh.attention is 'flash'"):
        MeshConfig(attention="flash")
    with pytest.raises(UserError, match="'heads'"):
        MeshConfig(fallbacks=("heads",))


def test_parts_of_axes_that_go_over_slices() -> None:
    config = MeshConfig(data=4, fsdp=-1, context=2, dcn_data=2)
    assert config.shape(16) == {"data": 4, "fsdp": 2, "context": 2, "tensor": 1, "expert": 1}
    assert config.slices == {"data": 2, "fsdp": 1, "context": 1, "tensor": 1, "expert": 1}
    with pytest.raises(UserError, match="mesh.dcn_fsdp is 3, which does not divide mesh.fsdp = 8"):
        MeshConfig(dcn_fsdp=3).shape(8)
    with pytest.raises(UserError, match="mesh.dcn_data is 0"):
        MeshConfig(dcn_data=0)


def test_imports_without_jax() -> None:
    code = "import chopjax.sharding.table, sys; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
