"""The demo model is the real thing: stock transformers loads it, and it speaks English."""

import json
import os
import sys
from pathlib import Path

import demo_model
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer

from chopjax.errors import UserError

ENGLISH = (
    "The old lighthouse stood on a rocky cliff above the sea. Every evening, when the sun went down, the keeper "
    "climbed the narrow stairs and lit the lamp, so that the fishing boats could find their way home. In winter the "
    "wind was so strong that he could not open the door, and he spent whole days reading by the fire. People in the "
    "village said that he was lonely, but he told them that he liked the quiet and that the birds were good company."
)
ODD_TEXTS = [
    "",
    " ",
    "  two  spaces\n\n\tand a tab \r\n",
    "1234567890 3.14 0x1F",
    "don't, we'll, I'M",
    "naïve café, Ω ≈ 3, 你好, мир, 👩‍👩‍👧 \u200b\ufeff",
    "def f(x):\n    return x ** 2  # ok\n",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
]


@pytest.fixture(scope="module")
def tokenizer(smollm2_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2_folder / "tokenizer.json"))


def test_unpermute_inverts_the_order_of_llama_cpp() -> None:
    heads, head_dim, inputs = 3, 10, 7
    weight = np.arange(heads * head_dim * inputs).reshape(heads * head_dim, inputs)
    # As llama.cpp's converter has it: the first half of a head's rows goes to the even places, the second to the odd.
    permuted = weight.reshape(heads, 2, head_dim // 2, inputs).swapaxes(1, 2).reshape(weight.shape)
    assert not np.array_equal(permuted, weight)
    assert np.array_equal(demo_model.unpermute(permuted, heads), weight)


def test_names() -> None:
    assert demo_model.hf_name("blk.12.attn_q.weight") == "model.layers.12.self_attn.q_proj.weight"
    assert demo_model.hf_name("output_norm.weight") == "model.norm.weight"
    with pytest.raises(KeyError):
        demo_model.hf_name("blk.0.ffn_gate_exps.weight")


def test_config_is_read_by_transformers(smollm2_folder: Path) -> None:
    config = AutoConfig.from_pretrained(smollm2_folder)
    found = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads)
    assert found == (30, 576, 9, 3)
    assert config.rms_norm_eps == 1e-5
    assert config.rope_parameters["rope_theta"] == 100_000
    assert config.tie_word_embeddings


def test_tensors(smollm2_folder: Path) -> None:
    tensors = load_file(smollm2_folder / "model.safetensors")
    assert len(tensors) == 2 + 9 * 30
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert sum(tensor.size for tensor in tensors.values()) == 134_515_008
    assert all(np.isfinite(tensor.astype(np.float32)).all() for tensor in tensors.values())


def test_transformers_reads_and_speaks(smollm2_folder: Path) -> None:
    """Perplexity proves the row order of q and k: 17.5 with the right one, 64 with that of llama.cpp."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        english = torch.tensor([tokenizer(ENGLISH)["input_ids"]])
        perplexity = model(english, labels=english).loss.exp().item()
        prompt = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
        mask = torch.ones_like(prompt)
        continued = model.generate(prompt, attention_mask=mask, max_new_tokens=12, do_sample=False)
    assert perplexity < 25
    assert "Paris" in tokenizer.decode(continued[0])


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_tokenizer_gives_any_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", [*ODD_TEXTS, ENGLISH])
def test_auto_tokenizer_agrees(smollm2_folder: Path, tokenizer: Tokenizer, text: str) -> None:
    """transformers has its own notions for some tokenizer classes; the folder names one that keeps to the file."""
    auto = AutoTokenizer.from_pretrained(smollm2_folder)
    ids = tokenizer.encode(text).ids
    assert auto(text)["input_ids"] == ids
    assert auto.decode(ids) == text


def test_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("In 1984").tokens == ["In", "Ġ", "1", "9", "8", "4"]


def test_special_tokens_have_one_id(smollm2_folder: Path, tokenizer: Tokenizer) -> None:
    auto = AutoTokenizer.from_pretrained(smollm2_folder)
    assert (auto.bos_token, auto.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (auto.unk_token, auto.pad_token) == ("<|endoftext|>", "<|im_end|>")
    declared = json.loads((smollm2_folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert len(declared) == 17
    for index, token in declared.items():
        assert tokenizer.encode(token["content"]).ids == [int(index)]
        assert tokenizer.decode([int(index)], skip_special_tokens=True) == ""


def test_chat_template(smollm2_folder: Path) -> None:
    auto = AutoTokenizer.from_pretrained(smollm2_folder)
    messages = [{"role": "user", "content": "Hi"}]
    text = auto.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_complete_folder_is_kept(smollm2_folder: Path) -> None:
    before = (smollm2_folder / "model.safetensors").stat().st_mtime_ns
    assert demo_model.make_folder(smollm2_folder) is False
    assert (smollm2_folder / "model.safetensors").stat().st_mtime_ns == before


def test_other_folder_is_refused_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a complete model folder"):
        demo_model.make_folder(tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]
    monkeypatch.setattr(sys, "argv", ["demo_model.py", str(tmp_path)])
    assert demo_model.main() == 2


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, source: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(demo_model, "write_files", fail)
    with pytest.raises(OSError, match="disk full"):
        demo_model.make_folder(tmp_path / "model")
    assert os.listdir(tmp_path) == []
