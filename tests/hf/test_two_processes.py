"""Two processes: no host holds the model when a 2 GB checkpoint is imported, and an export gathers what they share."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from hf.plain_checkpoints import plain_checkpoint

from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.families import FAMILIES
from chopjax.hf.reading import read_tensor
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import count

WIDE = ModelConfig(layers=14, embed=2048, kv_heads=4, q_per_kv=4, head_dim=128, mlp=8192, vocab=49_152, positions=64)
SHARDS = 3

# Each leaf is cut in two along `embed`, as FSDP over two hosts would have it.
START = """
import json, sys
import jax
port, process, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from chopjax.axes import flatten, unflatten
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.reading import load_params
from chopjax.hf.writing import export_params
from chopjax.models.parameters import declare

checkpoint = open_checkpoint(folder)
mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
shardings = {
    path: jax.sharding.NamedSharding(mesh, jax.P(*("fsdp" if axis == "embed" else None for axis in leaf.axes)))
    for path, leaf in declare(checkpoint.config).items()
}
"""

MEASURE = """
def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

before = memory("VmRSS")
params = load_params(checkpoint, unflatten(shardings))
grown, peak = memory("VmRSS") - before, memory("VmHWM") - before
local = sum(shard.data.nbytes for leaf in flatten(params).values() for shard in leaf.addressable_shards)
print(json.dumps({"grown": grown, "peak": peak, "local": local}))
"""

EXPORT = """
from jax.experimental import multihost_utils
params = load_params(checkpoint, unflatten(shardings))
assert not params["embed"]["table"].is_fully_addressable
export_params(sys.argv[4], params, checkpoint.config, checkpoint, max_shard_bytes=9000)
multihost_utils.sync_global_devices("exported")
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


def run_two_processes(script: str, *arguments: Path) -> list[str]:
    """What each of two processes, joined by jax.distributed, printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START + script, str(port), str(process), *map(str, arguments)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        for process in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [output.decode() for output in outputs]


def test_two_processes_grow_by_their_half(tmp_path: Path) -> None:
    total = sparse_checkpoint(tmp_path / "wide", WIDE)
    assert total == 2 * count(WIDE) > 2e9
    for output in run_two_processes(MEASURE, tmp_path / "wide"):
        report = json.loads(output.splitlines()[-1])
        # Embeddings along embed are halved like all the rest.
        assert report["local"] == total // 2
        assert report["local"] <= report["grown"] <= 0.75 * total, report
        assert report["peak"] <= 0.75 * total, report


def test_two_processes_export_one_folder(tmp_path: Path) -> None:
    """Arrays of which each process holds half are gathered tensor by tensor, and come back bit for bit."""
    source = open_checkpoint(plain_checkpoint(tmp_path / "source", dtype="bfloat16"))
    run_two_processes(EXPORT, tmp_path / "source", tmp_path / "export")
    export = open_checkpoint(tmp_path / "export")
    assert export.config == source.config
    for name in source.tensors:
        assert np.array_equal(read_tensor(export, name), read_tensor(source, name)), name
