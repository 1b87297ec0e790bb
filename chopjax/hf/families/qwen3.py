"""Qwen 3 (dense): RMSNorm on queries and keys, optional biases on all four projections, sliding windows by layer."""

from chopjax.hf.families.qwen2 import QWEN2
from chopjax.hf.families.table import Family

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    rules=QWEN2.rules,
    qk_norm=True,
    attention_bias="option",
    windows="by_layer",
    defaults={**QWEN2.defaults, "head_dim": 128},
)
