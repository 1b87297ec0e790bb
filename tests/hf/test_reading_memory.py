"""No host holds the model: two processes import a 2 GB checkpoint, and each grows by at most 0.75 of it."""

import json
import socket
import subprocess
import sys
from pathlib import Path

from hf.plain_checkpoints import SMALL

from chopjax.hf.families import FAMILIES
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import count

WIDE = ModelConfig(layers=14, embed=2048, kv_heads=4, q_per_kv=4, head_dim=128, mlp=8192, vocab=49_152, positions=64)
SHARDS = 3

# Each leaf is cut in two along `embed`, as FSDP over two hosts would have it.
IMPORT = """
import json, os, sys
import jax, psutil
port, process, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from chopjax.axes import flatten, unflatten
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.reading import load_params
from chopjax.models.parameters import declare

checkpoint = open_checkpoint(folder)
mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
shardings = {
    path: jax.sharding.NamedSharding(mesh, jax.P(*("fsdp" if axis == "embed" else None for axis in leaf.axes)))
    for path, leaf in declare(checkpoint.config).items()
}
memory = psutil.Process().memory_info
before = memory().rss
params = load_params(checkpoint, unflatten(shardings))
after = memory().rss
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
local = sum(shard.data.nbytes for leaf in flatten(params).values() for shard in leaf.addressable_shards)
print(json.dumps({"grown": after - before, "peak": peak - before, "local": local}))
"""


def sparse_checkpoint(folder: Path, config: ModelConfig) -> int:
    """Writes headers and holes that read as zeros, spread over shards; returns the bytes of the parameters."""
    folder.mkdir()
    family = FAMILIES["llama"]
    place: dict[str, str] = {}
    tensors = family.tensors(config)
    total = 0
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        header, offset = {}, 0
        for tensor in tensors[shard::SHARDS]:
            end = offset + 2 * int(tensor.leaf.size(config.sizes) // (config.layers if tensor.layer is not None else 1))
            header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [offset, end]}
            place[tensor.name] = name
            offset = end
        text = json.dumps(header).encode()
        with open(folder / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)
        total += offset
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    (folder / "config.json").write_text(json.dumps(family.config_to_hf(config, {}, "bfloat16")))
    return total


def import_with_two_processes(folder: Path) -> list[dict[str, int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", IMPORT, str(port), str(process), str(folder)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        for process in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(output) for output in outputs]


def test_two_processes_grow_by_their_half(tmp_path: Path) -> None:
    total = sparse_checkpoint(tmp_path / "wide", WIDE)
    assert total == 2 * count(WIDE) > 2e9
    for report in import_with_two_processes(tmp_path / "wide"):
        # Embeddings along embed are halved like all the rest.
        assert report["local"] == total // 2
        assert report["local"] <= report["grown"] <= 0.75 * total, report
        assert report["peak"] <= 0.75 * total, report


def test_small_one_reads_the_same_in_one_process(tmp_path: Path) -> None:
    """Sanity of the sparse writer: an ordinary opening takes it."""
    from chopjax.hf.checkpoint import open_checkpoint

    assert sparse_checkpoint(tmp_path / "small", SMALL) == 2 * count(SMALL)
    assert open_checkpoint(tmp_path / "small").dtype == "bfloat16"
