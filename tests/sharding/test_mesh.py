"""Meshes of host devices and pinned activations."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from chopjax.errors import UserError
from chopjax.sharding.mesh import Constrain, batch_sharding, join_processes, make_mesh, spec
from chopjax.sharding.rules import MeshConfig

MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def test_mesh_has_auto_axes_over_given_devices() -> None:
    mesh = make_mesh(MeshConfig(tensor=2), jax.devices()[:4])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "context": 1, "tensor": 2, "expert": 1}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


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
    monkeypatch.setattr(jax.distributed, "initialize", lambda: calls.append(1))
    join_processes(MeshConfig())
    assert not calls
    join_processes(MeshConfig(distributed=True))
    assert calls == [1]
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    join_processes(MeshConfig(distributed=True))
    assert calls == [1]


def test_no_other_process_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match="mesh.distributed is set, but .*coordinator_address.*single host"):
        join_processes(MeshConfig(distributed=True))
