"""Nemotron (Minitron): LayerNorm that multiplies by 1 + weight, squared ReLU without a gate, partial rotary."""

from chopjax.hf.families.llama import LLAMA_NAMES
from chopjax.hf.families.table import Family

NEMOTRON = Family(
    model_type="nemotron",
    architecture="NemotronForCausalLM",
    rules=LLAMA_NAMES,
    norm="layer_1p",
    norm_eps_key="norm_eps",
    gated=False,
    attention_bias="option",
    mlp_bias=True,
    rotary_fraction=0.5,
    defaults={
        "hidden_act": "relu2",
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "initializer_range": 0.0134,
    },
    token_ids={"bos_token_id": 2, "eos_token_id": 3},
)
