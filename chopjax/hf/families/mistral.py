"""Mistral 7B and its like: Llama's tensors, no biases, one sliding window for all layers."""

from chopjax.hf.families.llama import LLAMA_NAMES
from chopjax.hf.families.table import Family

MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    rules=LLAMA_NAMES,
    windows="all",
    defaults={
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "sliding_window": 4096,
    },
    token_ids={"bos_token_id": 1, "eos_token_id": 2},
)
