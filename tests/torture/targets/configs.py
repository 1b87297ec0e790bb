"""A model's config.json and generation_config.json."""

import json
import math
from typing import Any

from torture import mutate
from torture.sandbox import Reader
from torture.targets.target import Draw, Target, json_bytes, read_json

YARN = {"rope_type": "yarn", "rope_theta": 1e4}
LONG = {"rope_type": "longrope", "short_factor": [1e308] * 3, "long_factor": [0] * 3, "factor": 4, "rope_theta": 1}
LLAMA = {
    **{"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 1, "rope_theta": 1e4},
    "original_max_position_embeddings": 8192,
}
FIELDS: dict[str, tuple[Any, ...]] = {
    "num_hidden_layers": (10**9, 10**7, 10**6, 300_000, "4", 4.0, True, 0, -1),
    "vocab_size": (10**12,),
    "hidden_size": (10**18,),
    "num_attention_heads": (10**9,),
    "num_key_value_heads": (10**9,),
    "head_dim": (10**18,),
    "max_position_embeddings": (10**18, 2**63),
    "rms_norm_eps": (float("nan"), -1.0, 1e308),
    "rope_theta": (float("inf"), 0),
    "initializer_range": (float("nan"),),
    "hidden_act": (["silu"],),
    "architectures": ("LlamaForCausalLM", [["x"]]),
    "layer_types": (["full_attention"] * 4, [[]]),
    "tie_word_embeddings": ("false",),
    "attention_bias": ("false",),
    "mlp_bias": ([0],),
    "rope_parameters": (YARN, YARN | {"factor": float("nan")}, LONG, LLAMA, []),
    "rope_scaling": ({"type": "dynamic", "factor": 1e308}, "x"),
    "sliding_window": (-1,),
    "model_type": (3, "../x"),
    "auto_map": ({"AutoModel": "evil.py"},),
    "bos_token_id": (-1,),
    "eos_token_id": ([10**30],),
    "pad_token_id": (10**9, "x", -1, 300.5),
    "partial_rotary_factor": (float("nan"),),
    "quantization_config": ({"quant_method": "awq", "bits": 4}, [], "x"),
}
VALUES = {f"{name}={value!r:.60}": (name, value) for name, values in FIELDS.items() for value in values}
TEXT_FOR_BOOL = ("tie_word_embeddings='false'", "attention_bias='false'")
CHANGED = tuple(f"changed {number}" for number in range(20))

GENERATION = {"bos_token_id": 1, "eos_token_id": [2, 3], "temperature": 0.6, "top_p": 0.9, "do_sample": True}
ENDS: tuple[Any, ...] = (
    -1,
    10**9,
    10**30,
    1.5,
    "2",
    [],
    [[2]],
    [None],
    {"a": 1},
    True,
    [2, -1],
    [2, 10**9],
    float("nan"),
    [2] * 10_000,
)


def model_config(draw: Draw) -> Reader:
    model = draw.model()
    raw = read_json(model / "config.json")
    if draw.kind in VALUES:
        name, value = VALUES[draw.kind]
        text = json_bytes(raw | {name: value})
    else:
        text = mutate.json_bytes(draw.rng, mutate.json_value(draw.rng, raw))
    (model / "config.json").write_bytes(text)

    def read() -> str:
        from chopjax.hf.checkpoint import open_checkpoint
        from chopjax.hf.families import target_family

        source = open_checkpoint(model)
        config = source.config
        target_family(source.family, config)[0].config_to_hf(config, source.raw_config, "float32")
        numbers = (config.norm_eps, config.initializer_range, config.rope.theta, config.rope.rotary_fraction)
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            return f"accepted norm_eps, initializer_range, theta, rotary fraction {numbers}"
        return "text was accepted in place of true or false" if draw.kind in TEXT_FOR_BOOL else ""

    return read


def generation_config(draw: Draw) -> Reader:
    model = draw.model()
    file = model / "generation_config.json"
    if draw.kind.startswith("eos_token_id="):
        value = next(value for value in ENDS if draw.kind == _ends(value))
        file.write_bytes(json_bytes(GENERATION | {"eos_token_id": value}))
    else:
        file.write_bytes(mutate.json_bytes(draw.rng, mutate.json_value(draw.rng, GENERATION)))

    def read() -> str:
        from torture import readers

        return readers.chopped_differs(model, draw)

    return read


def _ends(value: Any) -> str:
    return f"eos_token_id={json.dumps(value):.40}"


TARGETS = (
    Target("model_config", model_config, [*VALUES, *CHANGED]),
    Target("generation_config", generation_config, [*map(_ends, ENDS), *CHANGED[:6]]),
)
