"""Shards, atomicity, and what an export refuses."""

import dataclasses
import functools
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf.plain_checkpoints import SMALL, plain_checkpoint, random_params
from safetensors.numpy import load_file

from chopjax.errors import UserError
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.families import Tensor
from chopjax.hf.safetensors import INDEX, read_tensor
from chopjax.hf.verify import verify_folder
from chopjax.hf.writing import LazyTensor, export_params, plan_shards, write_checkpoint

FLOAT = np.dtype(np.float32)


def lazy(name: str, size: int) -> LazyTensor:
    return LazyTensor(name, FLOAT, (size,), lambda: np.ones(size, np.float32))


def test_shards_are_cut_in_order_and_below_the_cap() -> None:
    sizes = [3, 3, 5, 30, 1, 1, 9]
    shards = plan_shards([lazy(str(number), size) for number, size in enumerate(sizes)], 40)
    assert [[tensor.name for tensor in shard] for shard in shards] == [["0", "1"], ["2"], ["3"], ["4", "5"], ["6"]]


def test_sharded_export_reads_back(tmp_path: Path) -> None:
    source = open_checkpoint(plain_checkpoint(tmp_path / "source"))
    params = random_params(SMALL)
    export_params(tmp_path / "one", params, SMALL, source)
    export_params(tmp_path / "many", params, SMALL, source, max_shard_bytes=9_000)
    index = json.loads((tmp_path / "many" / INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    one, many = open_checkpoint(tmp_path / "one"), open_checkpoint(tmp_path / "many")
    assert index["metadata"]["total_size"] == sum(entry.nbytes for entry in one.tensors.values())
    assert not (tmp_path / "one" / INDEX).exists()
    for name in one.tensors:
        assert np.array_equal(read_tensor(one.tensors[name]), read_tensor(many.tensors[name]))


def test_other_files_and_config_keys_are_carried_over(tmp_path: Path) -> None:
    folder = plain_checkpoint(tmp_path / "source")
    (folder / "additional_chat_templates").mkdir()
    tools = "additional_chat_templates/tool_use.jinja"
    copied = ("tokenizer.json", "tokenizer.model", "LICENSE", "chat_template.jinja", "tokenizer.4.0.0.json", tools)
    for name in copied:
        (folder / name).write_bytes(name.encode() + b"\r\n\xff")
    for name in ("generation_config.json", "processor_config.json", "chat_template.json"):
        (folder / name).write_text('{"a":\t1}')
    for name in ("README.md", "training_args.bin", "trainer_state.json"):
        (folder / name).write_text("not carried over")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}, "my_key": [1, 2]}))
    source = open_checkpoint(folder)
    export_params(tmp_path / "export", random_params(SMALL), SMALL, source, card="the card")
    export = tmp_path / "export"
    found = {file.relative_to(export).as_posix() for file in export.rglob("*") if file.is_file()}
    assert found == {
        *copied,
        *("generation_config.json", "processor_config.json", "chat_template.json"),
        *("README.md", "config.json", "model.safetensors"),
    }
    assert all((export / name).read_bytes() == name.encode() + b"\r\n\xff" for name in copied)
    assert (export / "generation_config.json").read_text() == '{"a":\t1}'
    assert (tmp_path / "export" / "README.md").read_text() == "the card"
    written = open_checkpoint(tmp_path / "export").raw_config
    assert written["my_key"] == [1, 2]
    assert written["bos_token_id"] == 1
    assert "auto_map" not in written


def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    source = open_checkpoint(plain_checkpoint(tmp_path / "source"))
    params = random_params(SMALL)
    with pytest.raises(UserError, match="float8"):
        export_params(tmp_path / "export", params, SMALL, source, dtype="float8")
    params["layers"]["mlp"]["up"]["kernel"][1, 2, 3] = np.nan
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        export_params(tmp_path / "export", params, SMALL, source)
    params["layers"]["mlp"]["up"]["kernel"][1, 2, 3] = 1e5
    with pytest.raises(UserError, match=r"up_proj.*float16 ends at 65504"):
        export_params(tmp_path / "export", params, SMALL, source, dtype="float16")
    biased = dataclasses.replace(SMALL, embed=35, qkv_bias=True, o_bias=True)
    with pytest.raises(UserError, match=r"LlamaForCausalLM.*35.*MistralForCausalLM.*bias"):
        export_params(tmp_path / "export", random_params(biased), biased, source)
    with pytest.raises(ValueError, match="embed/table"):
        export_params(tmp_path / "export", params, dataclasses.replace(SMALL, vocab=66, tied=False), source)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_devices_turn_their_tensors_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host would take longer for that than for all else."""
    source, params = open_checkpoint(plain_checkpoint(tmp_path / "source")), random_params(SMALL)
    export_params(tmp_path / "by_host", params, SMALL, source, dtype="bfloat16")
    monkeypatch.delattr(Tensor, "to_file")
    export_params(tmp_path / "by_device", jax.tree.map(jnp.asarray, params), SMALL, source, dtype="bfloat16")
    one, other = (folder / "model.safetensors" for folder in (tmp_path / "by_host", tmp_path / "by_device"))
    assert one.read_bytes() == other.read_bytes()


def test_tensors_are_made_at_one_time_and_written_in_order(tmp_path: Path) -> None:
    together = threading.Barrier(4, timeout=30)  # which nobody passes alone

    def make(number: int) -> np.ndarray:
        together.wait()
        return np.full(3, number, np.float32)

    tensors = [LazyTensor(f"{n}", FLOAT, (3,), functools.partial(make, n)) for n in range(8)]
    write_checkpoint(tmp_path / "whole", tensors, {"model_type": "new"}, at_once=4)
    written = load_file(tmp_path / "whole" / "model.safetensors")
    assert {name: list(array) for name, array in written.items()} == {f"{n}": [n, n, n] for n in range(8)}
    bad = LazyTensor("bad", FLOAT, (3,), lambda: np.full(3, np.nan, np.float32))
    with pytest.raises(UserError, match="bad holds NaN"):
        write_checkpoint(tmp_path / "broken", [*tensors[:4], bad], {"model_type": "new"}, at_once=4)
    assert [entry.name for entry in tmp_path.iterdir()] == ["whole"]


def test_an_existing_folder_is_refused_or_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "export"
    write_checkpoint(target, [lazy("a", 3)], {"model_type": "first"})
    with pytest.raises(UserError, match="exists already"):
        write_checkpoint(target, [lazy("a", 3)], {"model_type": "second"})
    assert json.loads((target / "config.json").read_text()) == {"model_type": "first"}

    def fail() -> np.ndarray:
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        write_checkpoint(target, [LazyTensor("a", FLOAT, (3,), fail)], {"model_type": "second"}, replace=True)
    assert json.loads((target / "config.json").read_text()) == {"model_type": "first"}
    (target / "stray").touch()
    write_checkpoint(target, [lazy("a", 3)], {"model_type": "second"}, replace=True)
    assert {file.name for file in target.iterdir()} == {"config.json", "model.safetensors"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["export"]


WRITE_SLOWLY = """
import sys, time
import numpy as np
from chopjax.hf.writing import LazyTensor, write_checkpoint

def make():
    print("writing", flush=True)
    time.sleep(0.2)
    return np.ones(1000, np.float32)

tensors = [LazyTensor(str(n), np.dtype(np.float32), (1000,), make) for n in range(600)]
write_checkpoint(sys.argv[1], tensors, {"model_type": "new"}, max_shard_bytes=8000, replace=True)
"""


@pytest.mark.parametrize("existing", [False, True])
def test_killed_while_writing(tmp_path: Path, existing: bool) -> None:
    """Nothing half-written appears, an older folder stays, and the next write clears up."""
    target = tmp_path / "export"
    if existing:
        write_checkpoint(target, [lazy("a", 3)], {"model_type": "old"})
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_SLOWLY, str(target)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    with process.stdout:
        for _ in range(4):
            process.stdout.readline()
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    process.wait()
    assert target.exists() == existing
    assert (tmp_path / ".export.writing").is_dir()
    if existing:
        assert json.loads((target / "config.json").read_text()) == {"model_type": "old"}
    write_checkpoint(target, [lazy("b", 3)], {"model_type": "next"}, replace=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["export"]


def test_verify_has_nothing_to_say_about_a_good_export_but_its_tokenizer(tmp_path: Path) -> None:
    findings = verify_folder(plain_checkpoint(tmp_path))
    assert [(finding.severity, finding.subject) for finding in findings] == [("warning", "tokenizer.json")]
