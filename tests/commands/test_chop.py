"""A chop from file to file is the chop in memory, bit for bit; what stock transformers could not load is refused."""

import contextlib
import dataclasses
import json
import pathlib
import tempfile
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chop.plans import CENTRED, ROTARY, plans
from hf.plain_checkpoints import SMALL, plain_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from chopjax.axes import flatten
from chopjax.chop.apply import chop_config, chop_params
from chopjax.chop.edits import MergeKvHeads
from chopjax.chop.heads import head_residual, neighbours
from chopjax.chop.plan import Plan
from chopjax.commands import chop
from chopjax.commands.chop import chop_files
from chopjax.errors import UserError
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.reading import load_params, read_leaf, read_tensor
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import forward, logits
from chopjax.models.parameters import declare

WHOLE = 1 << 30

# Windows by layer, norms on queries and keys, a tied table; biases of every kind and no gate; a plain model whose
# heads need not divide what is left of its hidden size; biases on q, k and v alone.
FAMILIES = {
    "qwen3": dataclasses.replace(ROTARY, qkv_bias=False),
    "nemotron": CENTRED,
    "llama": SMALL,
    "qwen2": dataclasses.replace(ROTARY, qk_norm=False),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """A checkpoint of each family, in many shards, some in bfloat16."""
    folder = tmp_path_factory.mktemp("sources")
    dtypes = {"qwen3": "bfloat16", "nemotron": "float32", "llama": "float16", "qwen2": "float32"}
    return {
        name: plain_checkpoint(folder / name, config, name, dtypes[name], max_shard_bytes=3000)
        for name, config in FAMILIES.items()
    }


def same_bits(one: dict, other: dict) -> None:
    one, other = flatten(one), flatten(other)
    assert one.keys() == other.keys()
    for path in one:
        assert one[path].dtype == other[path].dtype
        np.testing.assert_array_equal(np.asarray(one[path]).view(np.uint8), np.asarray(other[path]).view(np.uint8))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_file_to_file_equals_in_memory(family: str, sources: dict[str, pathlib.Path], data: st.DataObject) -> None:
    source = open_checkpoint(sources[family])
    plan = data.draw(plans(FAMILIES[family]))
    shard = data.draw(st.sampled_from([1, 2000, WHOLE]))
    with tempfile.TemporaryDirectory() as parent:
        chop_files(source, plan, pathlib.Path(parent) / "student", shard)
        student = open_checkpoint(pathlib.Path(parent) / "student")
        assert student.config == chop_config(source.config, plan)
        in_memory = jax.tree.map(np.asarray, load_params(source))  # jax and numpy agree: tests/chop/test_apply.py
        same_bits(load_params(student), chop_params(plan, declare(source.config), in_memory))


def test_some_tensors_are_chopped_at_one_time(
    sources: dict[str, pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, together = open_checkpoint(sources["qwen2"]), threading.Barrier(2)
    met: list[object] = []

    def read(*where: object) -> np.ndarray:
        with contextlib.suppress(threading.BrokenBarrierError):  # of the last, where they are odd
            together.wait(0.5)
            met.append(where)
        return read_leaf(*where)

    monkeypatch.setattr(chop, "read_leaf", read)
    chop_files(source, Plan(source.config.sizes, {}), tmp_path / "student", WHOLE)
    assert met


def edit_plan(config: ModelConfig) -> Plan:
    """Two layers; all KV heads merged into one and one query head dropped, which leaves a residual in another."""
    merge = MergeKvHeads(neighbours(2, config.kv_heads, config.kv_heads))
    heads = config.q_heads
    score = np.random.default_rng(4).random((2, 1, heads))
    queries = np.sort(np.argsort(-score)[..., : heads - 1])
    kept = {"layers": np.array([0, 2]), "q_per_kv": queries, "mlp": np.tile(np.arange(5), (2, 1))}
    return Plan(dict(config.sizes), kept, edits=(merge, head_residual(score, queries, "minitron")))


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_file_to_file_are_edits_in_memory(
    family: str, sources: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    source, plan = open_checkpoint(sources[family]), edit_plan(FAMILIES[family])
    chop_files(source, plan, tmp_path / "student", 2000)
    student = open_checkpoint(tmp_path / "student")
    assert student.config == chop_config(source.config, plan)
    assert (student.config.kv_heads, student.config.q_heads) == (1, source.config.q_heads - 1)
    in_memory = jax.tree.map(np.asarray, load_params(source))
    same_bits(load_params(student), chop_params(plan, declare(source.config), in_memory))


def test_merged_heads_load_in_transformers_with_equal_logits(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(SMALL, kv_heads=4, q_per_kv=1, embed=24)  # multi-head attention becomes grouped
    source = open_checkpoint(plain_checkpoint(tmp_path / "model", config, scale=0.3))
    plan = Plan(dict(config.sizes), {}, edits=(MergeKvHeads(np.array([[[0, 3], [1, 2]]] * 3)),))
    chop_files(source, plan, tmp_path / "student", WHOLE)
    student = open_checkpoint(tmp_path / "student")
    assert student.raw_config["model_type"] == "llama"
    assert [student.raw_config[f"num_{name}_heads"] for name in ("attention", "key_value")] == [4, 2]
    tokens = np.random.default_rng(0).integers(0, config.vocab, (2, 9))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype="auto").eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)).logits.numpy()
    ours = run_logits(student.config, load_params(student), jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_chop_of_nothing_changes_no_bit(family: str, sources: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    source = open_checkpoint(sources[family])
    chop_files(source, Plan(dict(source.config.sizes), {}), tmp_path / "student", WHOLE)
    student = open_checkpoint(tmp_path / "student")
    assert (student.family, student.config, student.dtype) == (source.family, source.config, source.dtype)
    assert student.tensors.keys() == source.tensors.keys()
    for name, entry in source.tensors.items():
        assert student.tensors[name].code == entry.code
        assert read_tensor(student, name).tobytes() == read_tensor(source, name).tobytes()


def test_each_leaf_keeps_its_own_dtype(tmp_path: pathlib.Path) -> None:
    folder = plain_checkpoint(tmp_path / "model", SMALL, dtype="bfloat16")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: value.astype(np.float32) if "norm" in name else value for name, value in tensors.items()},
        folder / "model.safetensors",
    )
    plan = Plan(dict(SMALL.sizes), {"layers": np.array([0, 2]), "embed": np.arange(0, 36, 3)})
    chop_files(open_checkpoint(folder), plan, tmp_path / "student", WHOLE)
    student = open_checkpoint(tmp_path / "student")
    assert {entry.code for name, entry in student.tensors.items() if "norm" in name} == {"F32"}
    assert {entry.code for name, entry in student.tensors.items() if "norm" not in name} == {"BF16"}


def run_logits(config: ModelConfig, params: dict, tokens: jax.Array) -> np.ndarray:
    return np.asarray(logits(config, params, forward(config, params, tokens).hidden))


def test_llama_whose_heads_do_not_divide_its_hidden_size_comes_out_as_mistral(tmp_path: pathlib.Path) -> None:
    source = open_checkpoint(plain_checkpoint(tmp_path / "model", SMALL))
    plan = Plan(dict(SMALL.sizes), {"embed": np.arange(35), "layers": np.array([0, 2])})
    chop_files(source, plan, tmp_path / "student", WHOLE)
    raw = json.loads((tmp_path / "student" / "config.json").read_text())
    assert (raw["model_type"], raw["architectures"]) == ("mistral", ["MistralForCausalLM"])
    assert (raw["hidden_size"], raw["num_attention_heads"], raw["head_dim"]) == (35, 4, 6)
    assert "exported as MistralForCausalLM" in (tmp_path / "student" / "README.md").read_text()
    student = open_checkpoint(tmp_path / "student")
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, SMALL.vocab, (2, 9)), jnp.int32)
    in_memory = chop_params(plan, declare(SMALL), load_params(source))
    np.testing.assert_array_equal(
        run_logits(student.config, load_params(student), tokens),
        run_logits(chop_config(SMALL, plan), in_memory, tokens),
    )


def test_biases_have_no_stand_in(tmp_path: pathlib.Path) -> None:
    biased = dataclasses.replace(SMALL, qkv_bias=True, o_bias=True)
    source = open_checkpoint(plain_checkpoint(tmp_path / "model", biased))
    plan = Plan(dict(biased.sizes), {"embed": np.arange(35)})
    with pytest.raises(UserError, match=r"cannot load this as LlamaForCausalLM: it refuses hidden_size 35.*nor as Mis"):
        chop_files(source, plan, tmp_path / "student", WHOLE)
    assert {entry.name for entry in tmp_path.iterdir()} == {"model"}
    chop_files(source, Plan(dict(biased.sizes), {"mlp": np.tile(np.arange(5), (3, 1))}), tmp_path / "student", WHOLE)
    assert open_checkpoint(tmp_path / "student").config.o_bias


def test_an_existing_folder_and_bad_weights_are_refused(tmp_path: pathlib.Path) -> None:
    folder = plain_checkpoint(tmp_path / "model", SMALL)
    plan = Plan(dict(SMALL.sizes), {"layers": np.array([1])})
    with pytest.raises(UserError, match="exists already"):
        chop_files(open_checkpoint(folder), plan, folder, WHOLE)
    tensors = load_file(folder / "model.safetensors")
    for layer in (0, 1):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"][0, 0] = np.inf
        save_file(tensors, folder / "model.safetensors")
        if layer == 0:  # which is not kept
            chop_files(open_checkpoint(folder), plan, tmp_path / "fine", WHOLE)
    with pytest.raises(UserError, match=r"holds NaN or infinity"):
        chop_files(open_checkpoint(folder), plan, tmp_path / "student", WHOLE)
    assert {entry.name for entry in tmp_path.iterdir()} == {"model", "fine"}
