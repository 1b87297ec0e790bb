"""Bad folders are refused at opening, in one line that names the file or tensor."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf.plain_checkpoints import SMALL, plain_checkpoint

from chopjax.errors import UserError
from chopjax.hf.checkpoint import open_checkpoint, open_config
from chopjax.hf.reading import load_params
from chopjax.hf.safetensors import DTYPES, INDEX, Writer, read_header, read_tensor

Tensors = dict[str, np.ndarray]


def edit_config(folder: Path, **changes: Any) -> None:
    """Sets keys of config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(folder: Path, change: Callable[[Tensors], None]) -> None:
    """Rewrites model.safetensors after `change` has altered the dict of its tensors."""
    file = folder / "model.safetensors"
    tensors = {name: read_tensor(entry) for name, entry in read_header(file).items()}
    change(tensors)
    file.unlink()
    with Writer(file, {name: (array.dtype, array.shape) for name, array in tensors.items()}) as writer:
        for name in writer.order:
            writer.write(name, tensors[name])


def refused(folder: Path | str, *words: str) -> None:
    """Opening is refused in one line with all the words."""
    with pytest.raises(UserError) as caught:
        open_checkpoint(folder)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line


def test_opens_single_and_sharded_alike(tmp_path: Path) -> None:
    one = open_checkpoint(plain_checkpoint(tmp_path / "one"))
    many = open_checkpoint(plain_checkpoint(tmp_path / "many", max_shard_bytes=9_000))
    assert (tmp_path / "many" / INDEX).is_file()
    assert one.config == many.config == SMALL
    assert {n: e.shape for n, e in one.tensors.items()} == {n: e.shape for n, e in many.tensors.items()}


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "absent", "no such folder", "hub id")
    refused(tmp_path, "config.json", "missing")
    # Tests run with the hub out of reach.
    refused("nobody/nothing", "nobody/nothing", "no such folder", "hub")


def test_config_not_json(tmp_path: Path) -> None:
    plain_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "config.json", "not valid JSON")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rms_norm_eps": "x"}, "rms_norm_eps must be a number above 0, found 'x'"),
        ({"initializer_range": []}, "initializer_range must be a number above 0"),
        ({"hidden_act": ["silu"]}, "unsupported hidden_act"),
        ({"architectures": 5}, "architectures is 5; it must be a list of names"),
        ({"rope_scaling": "x"}, "rope_scaling is 'x'; it must be an object"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor must be a number above 0, found 0"),
        ({"rope_parameters": {"rope_theta": -1}}, "rope_theta must be a number above 0, found -1"),
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 2, "short_factor": [1], "long_factor": [1, 2]}},
            "short_factor has 1 entries, but a head has 3 rotary pairs",
        ),
    ],
)
def test_values_of_a_wrong_kind(tmp_path: Path, changes: dict, said: str) -> None:
    plain_checkpoint(tmp_path)
    edit_config(tmp_path, **changes)
    refused(tmp_path, "config.json", said)


def with_header(file: Path, header: object) -> None:
    """Replaces the header of a safetensors file."""
    raw = file.read_bytes()
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + int.from_bytes(raw[:8], "little") :])


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [36], "data_offsets": ["a", "b"]},
        {"dtype": "F32", "shape": [36], "data_offsets": [-144, 0]},
        {"dtype": "F32", "shape": [36.0], "data_offsets": [0, 144]},
        {"dtype": ["F32"], "shape": [36], "data_offsets": [0, 144]},
        5,
    ],
)
def test_broken_header(tmp_path: Path, entry: object) -> None:
    plain_checkpoint(tmp_path)
    with_header(tmp_path / "model.safetensors", {"model.norm.weight": entry})
    refused(tmp_path, "model.norm.weight has a broken header entry", "download it again")
    with_header(tmp_path / "model.safetensors", [entry])
    refused(tmp_path, "not a safetensors file")


@pytest.mark.parametrize("weight_map", [[1], {}, {"a": None}, {"a": 1, "b": "x"}])
def test_broken_index(tmp_path: Path, weight_map: object) -> None:
    plain_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refused(tmp_path, INDEX, "not an index")


def test_unsupported_architecture_is_named_with_those_supported(tmp_path: Path) -> None:
    plain_checkpoint(tmp_path)
    edit_config(tmp_path, model_type="mamba", architectures=["MambaForCausalLM"])
    refused(tmp_path, "mamba", "MambaForCausalLM", "LlamaForCausalLM", "NemotronForCausalLM", "Qwen3ForCausalLM")
    edit_config(tmp_path, model_type="llama", architectures=["LlamaForSequenceClassification"])
    refused(tmp_path, "LlamaForSequenceClassification")


def test_missing_shard(tmp_path: Path) -> None:
    plain_checkpoint(tmp_path, max_shard_bytes=9_000)
    shard = sorted(tmp_path.glob("model-*"))[1]
    shard.unlink()
    refused(tmp_path, shard.name, "missing shard")


def test_index_that_lies(tmp_path: Path) -> None:
    plain_checkpoint(tmp_path, max_shard_bytes=9_000)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    refused(tmp_path, "model.norm.weight", INDEX)
    index["weight_map"]["model.norm.weight"] = "../outside.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    refused(tmp_path, "outside of the folder")


@pytest.mark.parametrize("size", [0, 4, 200, -1])
def test_truncated(tmp_path: Path, size: int) -> None:
    plain_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:size])
    refused(tmp_path, "model.safetensors", "download it again")


def test_only_bin(tmp_path: Path) -> None:
    plain_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    refused(tmp_path, ".bin", "safetensors")
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model-00001-of-00002.safetensors")
    refused(tmp_path, f"neither model.safetensors nor {INDEX}; model-00001-of-00002.safetensors is read only if")
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    refused(tmp_path, f"neither model.safetensors nor {INDEX}")


def stored_as(file: Path, name: str, **fields: Any) -> None:
    """Changes header fields of one tensor."""
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header[name] |= fields
    with_header(file, header)


def test_a_dtype_that_is_not_read(tmp_path: Path) -> None:
    plain_checkpoint(tmp_path)
    stored_as(tmp_path / "model.safetensors", "model.norm.weight", dtype="I32")
    refused(tmp_path, "model.norm.weight is stored as I32, which is not read; convert the checkpoint to float32")


def test_quantized_tensors_are_refused_whatever_the_config_says(tmp_path: Path) -> None:
    plain_checkpoint(tmp_path)
    stored_as(tmp_path / "model.safetensors", "model.norm.weight", dtype="F8_E4M3", shape=[144])
    message = (
        f"{tmp_path}/model.safetensors: tensor model.norm.weight, stored as F8_E4M3, belongs to a quantized "
        "checkpoint, which is not read; use the checkpoint that it was quantized from, or dequantize it to bfloat16 "
        "first (in transformers: model.dequantize(), then save_pretrained)"
    )
    refused(tmp_path, message)
    edit_config(tmp_path, quantization_config={"quant_method": "fp8"})
    refused(tmp_path, message)

    def pack(tensors: Tensors) -> None:
        tensors["model.layers.0.mlp.up_proj.weight_scale"] = np.ones(19, np.float32)

    edit_tensors(plain_checkpoint(tmp_path / "packed"), pack)
    refused(tmp_path / "packed", "up_proj.weight_scale, stored as F32, belongs to a quantized checkpoint")


def test_quantization_config_of_plain_tensors_is_to_be_removed(tmp_path: Path) -> None:
    plain_checkpoint(tmp_path, dtype="bfloat16")
    edit_config(tmp_path, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    refused(
        tmp_path,
        f"{tmp_path}/config.json: quantization_config is set, so transformers would quantize these weights, which are "
        "not quantized; remove quantization_config from that file to use them as they are stored",
    )
    with pytest.raises(UserError, match=r"remove it if the weights are not quantized, otherwise use the checkpoint"):
        open_config(tmp_path)
    edit_config(tmp_path, quantization_config=None)
    assert open_checkpoint(tmp_path).dtype == "bfloat16"


def test_depth_is_compared_before_anything_is_made_for_each_layer(tmp_path: Path) -> None:
    plain_checkpoint(tmp_path)
    for layers in (2, 9_999):
        edit_config(tmp_path, num_hidden_layers=layers)
        refused(tmp_path, f"the files hold 3 layers, but config.json says num_hidden_layers {layers}")


def test_tensor_missing_unknown_or_misshapen(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def drop(tensors: Tensors) -> None:
        del tensors[name]

    def add(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(24, np.float32)

    def cut(tensors: Tensors) -> None:
        tensors[name] = tensors[name][:-1]

    edit_tensors(plain_checkpoint(tmp_path / "a"), drop)
    refused(tmp_path / "a", name, "missing")
    edit_tensors(plain_checkpoint(tmp_path / "b"), add)
    refused(tmp_path / "b", "unknown tensor model.layers.0.self_attn.q_proj.bias")
    edit_tensors(plain_checkpoint(tmp_path / "c"), cut)
    refused(tmp_path / "c", name, "(18, 36)", "(19, 36)")


def test_useless_tensors_are_passed_over(tmp_path: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3, np.float32)

    edit_tensors(plain_checkpoint(tmp_path), add)
    assert not any("inv_freq" in name for name in open_checkpoint(tmp_path).tensors)


def test_tied_head_must_equal_the_embedding(tmp_path: Path) -> None:
    plain_checkpoint(tmp_path, replace(SMALL, tied=True))

    def equal(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    def different(tensors: Tensors) -> None:
        tensors["lm_head.weight"][-1, -1] += 1

    edit_tensors(tmp_path, equal)
    assert "lm_head.weight" not in open_checkpoint(tmp_path).tensors
    edit_tensors(tmp_path, different)
    refused(tmp_path, "lm_head.weight", "differs", "tie_word_embeddings")
    edit_config(tmp_path, tie_word_embeddings=False)
    assert "lm_head.weight" in open_checkpoint(tmp_path).tensors


def test_untied_head_missing(tmp_path: Path) -> None:
    plain_checkpoint(tmp_path, replace(SMALL, tied=True))
    edit_config(tmp_path, tie_word_embeddings=False)
    refused(tmp_path, "lm_head.weight", "tie_word_embeddings")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_is_named(tmp_path: Path, dtype: str, value: float) -> None:
    plain_checkpoint(tmp_path, dtype=dtype)

    def spoil(tensors: Tensors) -> None:
        tensors["model.layers.2.self_attn.k_proj.weight"][3, 5] = value

    edit_tensors(tmp_path, spoil)
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"model\.layers\.2\.self_attn\.k_proj\.weight holds NaN or infinity"):
        load_params(checkpoint)
    assert load_params(checkpoint, check_finite=False)
