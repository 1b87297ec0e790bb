"""Llama 1, 2, 3 and what shares its classes (SmolLM2, ...); the tensor names that most other families share too."""

from collections.abc import Mapping

from chopjax.hf.families.table import Family, Rule

_LAYER = "model.layers.{layers}"

# Bias and norm entries stand here for every family that may have them; a config without them has no such leaf.
ATTENTION: Mapping[str, Rule] = {
    "layers/attention/q/kernel": Rule(f"{_LAYER}.self_attn.q_proj.weight", "(kv_heads q_per_kv head_dim) embed"),
    "layers/attention/q/bias": Rule(f"{_LAYER}.self_attn.q_proj.bias", "(kv_heads q_per_kv head_dim)"),
    "layers/attention/k/kernel": Rule(f"{_LAYER}.self_attn.k_proj.weight", "(kv_heads head_dim) embed"),
    "layers/attention/k/bias": Rule(f"{_LAYER}.self_attn.k_proj.bias", "(kv_heads head_dim)"),
    "layers/attention/v/kernel": Rule(f"{_LAYER}.self_attn.v_proj.weight", "(kv_heads head_dim) embed"),
    "layers/attention/v/bias": Rule(f"{_LAYER}.self_attn.v_proj.bias", "(kv_heads head_dim)"),
    "layers/attention/o/kernel": Rule(f"{_LAYER}.self_attn.o_proj.weight", "embed (kv_heads q_per_kv head_dim)"),
    "layers/attention/o/bias": Rule(f"{_LAYER}.self_attn.o_proj.bias", "embed"),
    "layers/attention/q_norm/scale": Rule(f"{_LAYER}.self_attn.q_norm.weight", "head_dim"),
    "layers/attention/k_norm/scale": Rule(f"{_LAYER}.self_attn.k_norm.weight", "head_dim"),
}

MLP: Mapping[str, Rule] = {
    "layers/mlp/gate/kernel": Rule(f"{_LAYER}.mlp.gate_proj.weight", "mlp embed"),
    "layers/mlp/gate/bias": Rule(f"{_LAYER}.mlp.gate_proj.bias", "mlp"),
    "layers/mlp/up/kernel": Rule(f"{_LAYER}.mlp.up_proj.weight", "mlp embed"),
    "layers/mlp/up/bias": Rule(f"{_LAYER}.mlp.up_proj.bias", "mlp"),
    "layers/mlp/down/kernel": Rule(f"{_LAYER}.mlp.down_proj.weight", "embed mlp"),
    "layers/mlp/down/bias": Rule(f"{_LAYER}.mlp.down_proj.bias", "embed"),
}

LLAMA_NAMES: Mapping[str, Rule] = {
    "embed/table": Rule("model.embed_tokens.weight", "vocab embed"),
    "layers/attention_norm/scale": Rule(f"{_LAYER}.input_layernorm.weight", "embed"),
    "layers/attention_norm/bias": Rule(f"{_LAYER}.input_layernorm.bias", "embed"),
    **ATTENTION,
    "layers/mlp_norm/scale": Rule(f"{_LAYER}.post_attention_layernorm.weight", "embed"),
    "layers/mlp_norm/bias": Rule(f"{_LAYER}.post_attention_layernorm.bias", "embed"),
    **MLP,
    "final_norm/scale": Rule("model.norm.weight", "embed"),
    "final_norm/bias": Rule("model.norm.bias", "embed"),
    "unembed/kernel": Rule("lm_head.weight", "vocab embed"),
}

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    rules=LLAMA_NAMES,
    attention_bias="option",
    mlp_bias=True,
    embed_divides=True,
    stand_in="mistral",
    defaults={"hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "initializer_range": 0.02},
    token_ids={"bos_token_id": 1, "eos_token_id": 2},
)
