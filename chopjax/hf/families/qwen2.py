"""Qwen 2 and 2.5: biases on q, k and v, sliding windows by layer."""

from chopjax.hf.families.llama import LLAMA_NAMES
from chopjax.hf.families.table import Family

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    rules=LLAMA_NAMES,
    attention_bias="qkv",
    windows="by_layer",
    head_dim_note="Qwen2 with a head_dim that is not hidden_size / num_attention_heads: transformers honours it, "
    "vLLM's own Qwen2 class does not (serve it there with --model-impl transformers)",
    defaults={
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
)
