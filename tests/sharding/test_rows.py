"""Which rows each process brings, without processes."""

import jax
import numpy as np
import pytest

from chopjax.errors import UserError
from chopjax.sharding.mesh import make_mesh
from chopjax.sharding.rows import Share, local_rows, share_of, shared
from chopjax.sharding.rules import MeshConfig


def test_one_process_brings_all() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, context=2))
    assert share_of(mesh) == Share(0, 1, True, (0, 1, 2, 3))


def test_each_host_has_its_own_rows() -> None:
    """Hosts of two devices whose places on the mesh are not side by side, as on a grid of chips."""
    places = {0: {0, 2}, 1: {1, 3}, 2: {4, 6}, 3: {5, 7}}
    shares = [shared(places, process) for process in range(4)]
    assert [(share.index, share.count, share.leads) for share in shares] == [(i, 4, True) for i in range(4)]
    rows = np.arange(100, 106)  # three of each device
    assert local_rows(shares[3], rows, slice(15, 18), 24).tolist() == [100, 101, 102]
    assert local_rows(shares[3], rows, slice(21, 24), 24).tolist() == [103, 104, 105]


def test_hosts_that_work_on_the_same_rows_bring_the_same() -> None:
    """As where `context` or `tensor` goes over hosts."""
    places = {0: {1}, 1: {0}, 2: {1}, 3: {0}}
    shares = [shared(places, process) for process in range(4)]
    assert [(share.index, share.count, share.leads) for share in shares] == [
        (1, 2, True), (0, 2, True), (1, 2, False), (0, 2, False),
    ]  # fmt: skip
    assert local_rows(shares[2], np.arange(5), slice(5, 10), 10).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("places", [{0: {0, 1}, 1: {1, 2}}, {0: {0, 1}, 1: {2}}])
def test_hosts_that_share_some_rows_only(places: dict[int, set[int]]) -> None:
    with pytest.raises(UserError, match=r"mesh.context x mesh.tensor"):
        shared(places, 0)


def test_rows_are_placed_where_devices_want_them() -> None:
    mesh = make_mesh(MeshConfig(data=4, fsdp=2), jax.devices()[::-1])
    assert share_of(mesh).places == tuple(range(8))
