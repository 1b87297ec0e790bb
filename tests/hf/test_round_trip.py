"""Import, export, and what stock transformers makes of the export: bit for bit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
from hf.families_under_test import FAMILIES, options, save_random, small_hf_config

from chopjax.axes import flatten, unflatten
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.families import FAMILIES as TABLES
from chopjax.hf.reading import load_params, read_leaf, read_tensor
from chopjax.hf.verify import verify_folder
from chopjax.hf.writing import export_params
from chopjax.models.parameters import declare


def bits(tensor: Any) -> np.ndarray:
    """A torch tensor's bits."""
    import torch

    return tensor.detach().contiguous().view(torch.uint8).numpy()


def stock_model(folder: Path) -> Any:
    """The model as stock transformers loads it; fails if it misses a tensor or finds one too many."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    model, report = loaded
    problems = {key: value for key, value in report.items() if value}
    assert not problems
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_import_then_export_changes_no_bit(
    family: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    chosen = data.draw(options(family))
    dtype = data.draw(st.sampled_from(["float32", "bfloat16", "float16"]))
    shard = data.draw(st.sampled_from([4_000, 20_000, 10**9]))
    folder = tmp_path_factory.mktemp(family)
    model = save_random(folder / "source", small_hf_config(family, **chosen), dtype, max_shard_size=shard)

    source = open_checkpoint(folder / "source")
    assert source.dtype == dtype
    params = load_params(source)
    assert {leaf.dtype for leaf in flatten(params).values()} == {jnp.dtype(dtype)}
    note = export_params(folder / "export", params, source.config, source, max_shard_bytes=shard)
    assert note is None or "head_dim" in note

    export = open_checkpoint(folder / "export")
    assert export.config == source.config
    assert export.tensors.keys() == source.tensors.keys()
    for name in source.tensors:
        assert np.array_equal(read_tensor(source, name).view(np.uint8), read_tensor(export, name).view(np.uint8)), name
    # The embedding of a tiny vocabulary may alone exceed the smallest shard size.
    assert (len(list((folder / "export").glob("*.safetensors"))) > 1) == (shard < 10**9 and sum_bytes(source) > shard)

    loaded = stock_model(folder / "export").state_dict()
    for name, value in model.state_dict().items():
        assert value.dtype == loaded[name].dtype
        assert np.array_equal(bits(value), bits(loaded[name])), name
    errors = [finding for finding in verify_folder(folder / "export") if finding.severity == "error"]
    assert not errors


def sum_bytes(checkpoint: Any) -> int:
    return sum(entry.nbytes for entry in checkpoint.tensors.values())


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_written_config_means_the_same_to_transformers(family: str, data: st.DataObject) -> None:
    """What AutoConfig makes of our config.json equals what it made of its own, in every field that shapes a model."""
    from transformers import AutoConfig

    theirs = small_hf_config(family, **data.draw(options(family)))
    raw = json.loads(theirs.to_json_string(use_diff=False))
    table = TABLES[family]
    config = table.config_from_hf(raw)
    written = json.loads(json.dumps(table.config_to_hf(config, raw, "bfloat16")))
    assert table.config_from_hf(written) == config
    again = AutoConfig.for_model(**written)
    ignored = {"dtype", "torch_dtype", "rope_scaling", "rope_theta", "partial_rotary_factor", "transformers_version"}
    ignored |= {"original_max_position_embeddings", "architectures", "max_window_layers"}
    left, right = again.to_dict(), theirs.to_dict()
    if "sliding_attention" not in right.get("layer_types", ["sliding_attention"]):
        ignored |= {"use_sliding_window", "sliding_window"}  # which no layer uses
    for key in right.keys() - ignored:
        assert left[key] == right[key], key
    # Without the keys of transformers 5, as transformers 4 would read it, and without those of 4.
    old = {key: value for key, value in written.items() if key not in ("rope_parameters", "layer_types", "dtype")}
    new = {key: value for key, value in written.items() if key not in ("rope_scaling", "rope_theta", "torch_dtype")}
    assert table.config_from_hf(old) == config
    assert table.config_from_hf(new) == config
    assert AutoConfig.for_model(**new).rope_parameters == theirs.rope_parameters


@pytest.mark.parametrize("spec", [(), ("data",), (None, "data"), ("data", "model")])
def test_every_sharding_gets_the_same_values(spec: tuple[str | None, ...], tmp_path: Path) -> None:
    save_random(tmp_path, small_hf_config("llama", heads=(8, 4), hidden=40, mlp=24, vocab=64, layers=4, head_dim=8))
    checkpoint = open_checkpoint(tmp_path)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    whole = load_params(checkpoint)

    def sharding(leaf: jax.Array) -> jax.sharding.NamedSharding:
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec[: leaf.ndim]))

    sharded = load_params(checkpoint, jax.tree.map(sharding, whole))
    for path, leaf in flatten(sharded).items():
        assert leaf.sharding == sharding(leaf)
        assert np.array_equal(leaf, flatten(whole)[path]), path
        assert np.array_equal(leaf, read_leaf(checkpoint, path)), path
    export_params(tmp_path / "export", sharded, checkpoint.config, checkpoint)
    again = open_checkpoint(tmp_path / "export")
    for name in checkpoint.tensors:
        assert np.array_equal(read_tensor(checkpoint, name), read_tensor(again, name)), name


def test_parts_of_every_axis(tmp_path: Path) -> None:
    """Slices of any axis, alone and together, equal slices of the whole leaf."""
    save_random(tmp_path, small_hf_config("llama", heads=(6, 3), layers=4, attention_bias=True))
    checkpoint = open_checkpoint(tmp_path)
    for path in checkpoint.leaves:
        whole = read_leaf(checkpoint, path)
        for axis, size in enumerate(whole.shape):
            index = [slice(None)] * whole.ndim
            index[axis] = slice(size // 3, size - size // 4)
            assert np.array_equal(read_leaf(checkpoint, path, index), whole[tuple(index)]), (path, axis)
        index = [slice(size // 3, size - size // 4) for size in whole.shape]
        assert np.array_equal(read_leaf(checkpoint, path, index), whole[tuple(index)]), path


def test_dtype_of_load_and_export(tmp_path: Path) -> None:
    save_random(tmp_path / "source", small_hf_config("qwen3"), "bfloat16")
    source = open_checkpoint(tmp_path / "source")
    masters = load_params(source, dtype=jnp.float32)
    assert {leaf.dtype for leaf in flatten(masters).values()} == {jnp.dtype(jnp.float32)}
    export_params(tmp_path / "same", masters, source.config, source)
    export_params(tmp_path / "wide", jax.tree.map(np.asarray, masters), source.config, source, dtype="float32")
    same, wide = open_checkpoint(tmp_path / "same"), open_checkpoint(tmp_path / "wide")
    assert (same.dtype, wide.dtype) == ("bfloat16", "float32")
    assert same.raw_config["dtype"] == same.raw_config["torch_dtype"] == "bfloat16"
    for name in source.tensors:
        assert np.array_equal(read_tensor(same, name), read_tensor(source, name)), name
        assert np.array_equal(read_tensor(wide, name), read_tensor(source, name).astype(np.float32)), name


def test_mixed_dtypes_survive(tmp_path: Path) -> None:
    """Norms in float32 beside bfloat16 matrices come back as they were."""
    import torch
    from safetensors.torch import load_file, save_file

    save_random(tmp_path / "source", small_hf_config("mistral"), "bfloat16")
    file = tmp_path / "source" / "model.safetensors"
    state = {name: value.float() if "norm" in name else value for name, value in load_file(file).items()}
    save_file(state, file, {"format": "pt"})
    source = open_checkpoint(tmp_path / "source")
    params = load_params(source)
    assert params["final_norm"]["scale"].dtype == jnp.float32
    assert params["embed"]["table"].dtype == jnp.bfloat16
    export_params(tmp_path / "export", params, source.config, source)
    again = load_file(tmp_path / "export" / "model.safetensors")
    assert {name: value.dtype for name, value in again.items()} == {n: v.dtype for n, v in state.items()}
    assert all(torch.equal(again[name], value) for name, value in state.items())


def test_llama_that_llama_refuses_becomes_mistral(tmp_path: Path) -> None:
    """Same tensors, same logits; with biases it is refused."""
    import torch

    save_random(tmp_path / "source", small_hf_config("llama", heads=(4, 2), hidden=36))
    source = open_checkpoint(tmp_path / "source")
    flat = flatten(load_params(source))
    for path, leaf in declare(source.config).items():
        if "embed" in leaf.axes:
            flat[path] = jnp.take(flat[path], jnp.arange(35), leaf.axes.index("embed"))
    config = dataclasses.replace(source.config, embed=35)
    note = export_params(tmp_path / "export", unflatten(flat), config, source)
    assert note is not None and "MistralForCausalLM" in note
    export = open_checkpoint(tmp_path / "export")
    assert export.family.model_type == "mistral"
    assert export.raw_config["sliding_window"] is None
    assert export.config == config
    model = stock_model(tmp_path / "export")
    with torch.no_grad():
        assert model(torch.arange(5)[None]).logits.shape == (1, 5, 67)
