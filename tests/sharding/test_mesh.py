"""Meshes of host devices and pinned activations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from aot.slices import needs_libtpu
from jax.sharding import PartitionSpec as P

from chopjax.aot import topology
from chopjax.errors import UserError
from chopjax.sharding.mesh import Constrain, batch_sharding, join_processes, make_mesh, spec
from chopjax.sharding.rules import MeshConfig

MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def test_mesh_has_auto_axes_over_given_devices() -> None:
    mesh = make_mesh(MeshConfig(tensor=2), jax.devices()[:4])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "context": 1, "tensor": 2, "expert": 1}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device as meshes see it."""

    id: int
    slice_index: int = 0
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "unknown"


@pytest.mark.parametrize(
    ("config", "axis"),
    [(MeshConfig(data=2, fsdp=2, tensor=2, dcn_data=2), 0), (MeshConfig(data=1, fsdp=4, tensor=2, dcn_fsdp=2), 1)],
)
def test_only_the_chosen_axis_goes_over_slices(config: MeshConfig, axis: int) -> None:
    chips = [Chip(id, slice_index=id % 2) for id in range(8)]
    placed = make_mesh(config, chips).devices
    assert placed.shape == tuple(config.shape(8).values())
    halves = np.split(placed, 2, axis)
    assert [{chip.slice_index for chip in half.flat} for half in halves] == [{0}, {1}]


def test_hosts_stand_for_slices_where_devices_know_of_none() -> None:
    chips = [Chip(id, process_index=id // 2) for id in range(8)]
    mesh = make_mesh(MeshConfig(data=4, fsdp=2, dcn_data=4), chips)
    assert [[chip.id for chip in row.flat] for row in mesh.devices] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_slices_are_counted() -> None:
    chips = [Chip(id, id // 4, id // 4, "tpu") for id in range(8)]
    with pytest.raises(UserError, match="devices are of 2 slices; give mesh.dcn_data=2 "):
        make_mesh(MeshConfig(), chips)
    with pytest.raises(UserError, match="dcn_data x mesh.dcn_fsdp is 4, but there are 2 slices"):
        make_mesh(MeshConfig(data=4, dcn_data=4), chips)
    with pytest.raises(UserError, match="dcn_data x mesh.dcn_fsdp is 2, but there is 1 host; leave both at 1"):
        make_mesh(MeshConfig(data=2, dcn_data=2))


def test_hosts_of_one_tpu_slice_are_no_slices() -> None:
    chips = [Chip(id, process_index=id // 4, platform="tpu") for id in range(16)]
    with pytest.raises(UserError, match="mesh.dcn_data x mesh.dcn_fsdp is 4, but there is 1 slice; leave both at 1"):
        make_mesh(MeshConfig(data=4, dcn_data=4), chips)


@needs_libtpu
def test_slices_of_tpus() -> None:
    mesh = make_mesh(MeshConfig(data=2, tensor=2, dcn_data=2), topology.devices("2*v5e:2x2"))
    assert [{chip.slice_index for chip in half.flat} for half in mesh.devices] == [{0}, {1}]
    with pytest.raises(UserError, match="mesh.fsdp=8 x mesh.tensor=2 does not fit the grid"):
        make_mesh(MeshConfig(fsdp=8, tensor=2), topology.devices("v6e:4x4"))


def test_spec() -> None:
    assert spec(("batch", "length", "mlp"), (4, 3, 6), {"data": 2, "fsdp": 2, "tensor": 2}) == P(
        ("data", "fsdp"), None, "tensor"
    )


def test_constrain_pins() -> None:
    mesh = make_mesh(MESH)
    pin = Constrain(mesh, ("kv_heads",))
    q = jax.jit(lambda x: pin(x, ("batch", "length", "kv_heads", "q_per_kv", "head_dim")))(jnp.ones((8, 3, 3, 4, 5)))
    assert q.sharding.spec == P(("data", "fsdp"), None, None, "tensor")
    vocab = jax.jit(lambda x: pin(x, (None, "vocab")))(jnp.ones((6, 4)))
    assert vocab.sharding.spec == P(None, "tensor")
    assert pin.size(pin.parts("batch")) == 4
    assert batch_sharding(mesh).shard_shape((8, 3)) == (2, 3)


def test_constrain_refuses_instead_of_replicating() -> None:
    pin = Constrain(make_mesh(MESH))
    with pytest.raises(UserError, match="axis kv_heads of size 3"):
        jax.eval_shape(lambda x: pin(x, ("batch", "kv_heads")), jnp.ones((4, 3)))
    with pytest.raises(UserError, match="axis batch of size 6"):
        jax.eval_shape(lambda x: pin(x, ("batch", "length")), jnp.ones((6, 3)))


def test_processes_are_joined_only_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: calls.append(given))
    join_processes(MeshConfig())
    assert not calls
    join_processes(MeshConfig(distributed=True))
    assert calls == [{"heartbeat_timeout_seconds": 240}]
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    join_processes(MeshConfig(distributed=True))
    assert len(calls) == 1


def test_no_other_process_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**given: int) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match="mesh.distributed is set, but .*coordinator_address.*single host"):
        join_processes(MeshConfig(distributed=True))
