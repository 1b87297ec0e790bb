"""The table says what JAX does."""

import math

import jax

from chopjax.axes import flatten
from chopjax.models.config import ModelConfig
from chopjax.sharding.mesh import make_mesh, param_shardings
from chopjax.sharding.rules import MeshConfig
from chopjax.sharding.table import format_table, table

CONFIG = ModelConfig(
    layers=3, embed=72, kv_heads=3, q_per_kv=4, head_dim=6, mlp=50, vocab=46, positions=9, qkv_bias=True
)
MESH = MeshConfig(data=2, fsdp=2, tensor=2, fallbacks=("kv_heads",))


def test_bytes_are_those_of_the_shards() -> None:
    mesh = make_mesh(MESH)
    shardings = flatten(param_shardings(CONFIG, mesh, MESH.fallbacks))
    rows = table(CONFIG, MESH.shape(8), MESH.fallbacks)
    assert [row.leaf for row in rows] == list(shardings)
    for row in rows:
        assert row.bytes_per_chip == 4 * math.prod(shardings[row.leaf].shard_shape(row.shape))


def test_printed_table_names_fallbacks_and_sums() -> None:
    rows = table(CONFIG, MESH.shape(8), MESH.fallbacks)
    lines = format_table(rows).splitlines()
    by_leaf = {line.split()[0]: line for line in lines}
    assert "kv_heads -> q_per_kv" in by_leaf["layers/attention/q/kernel"]
    assert "kv_heads -> replicated" in by_leaf["layers/attention/k/kernel"]
    assert "->" not in by_leaf["layers/mlp/up/kernel"]
    assert f"{sum(row.bytes_per_chip for row in rows) / 2**20:.2f}" in by_leaf["all"]


def test_real_size_needs_no_devices() -> None:
    llama = ModelConfig(
        layers=32, embed=4096, kv_heads=8, q_per_kv=4, head_dim=128, mlp=14336, vocab=128256, positions=8192
    )
    mesh = jax.sharding.AbstractMesh((2, 16, 8), ("data", "fsdp", "tensor"))
    rows = table(llama, dict(mesh.shape))
    shardings = flatten(param_shardings(llama, mesh))
    assert shardings["layers/attention/q/kernel"].shard_shape((32, 4096, 8, 4, 128)) == (32, 256, 1, 4, 128)
    assert sum(row.bytes_per_chip for row in rows) < 4 * 8.1e9 / 128 * 1.01
