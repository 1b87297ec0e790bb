"""Small checkpoints written without torch or transformers."""

from pathlib import Path

import numpy as np

from chopjax.axes import unflatten
from chopjax.hf.families import FAMILIES
from chopjax.hf.safetensors import DTYPES
from chopjax.hf.writing import MAX_SHARD_BYTES, LazyTensor, write_checkpoint
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import shapes

SMALL = ModelConfig(layers=3, embed=36, kv_heads=2, q_per_kv=2, head_dim=6, mlp=19, vocab=67, positions=40)


def random_params(config: ModelConfig, dtype: str = "float32", seed: int = 0) -> dict:
    """Random numpy parameters of `config`."""
    random = np.random.default_rng(seed)
    flat = {path: random.normal(size=shape).astype(DTYPES[dtype]) for path, shape in shapes(config).items()}
    return unflatten(flat)


def plain_checkpoint(
    folder: Path,
    config: ModelConfig = SMALL,
    model_type: str = "llama",
    dtype: str = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    seed: int = 7,
    scale: float = 1.0,
) -> Path:
    """A folder with normal random weights of standard deviation `scale`; returns it."""
    family = FAMILIES[model_type]
    random = np.random.default_rng(seed)

    def lazy(name: str, shape: tuple[int, ...]) -> LazyTensor:
        return LazyTensor(name, DTYPES[dtype], shape, lambda: (scale * random.normal(size=shape)).astype(DTYPES[dtype]))

    tensors = [lazy(tensor.name, tensor.shape) for tensor in family.tensors(config)]
    raw = {"bos_token_id": 1, "eos_token_id": 2, "attention_dropout": 0.0}
    write_checkpoint(folder, tensors, family.config_to_hf(config, raw, dtype), max_shard_bytes=max_shard_bytes)
    return folder
