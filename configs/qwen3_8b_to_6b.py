"""Qwen3-8B to 6.0B in depth and width, by the settings that NVIDIA ModelOpt suggests for Minitron.

    python -m chopjax.train --config configs/qwen3_8b_to_6b.py[:DATA] --config.workdir=gs://BUCKET/qwen3-6b

30 of 36 layers, hidden size 3584 of 4096, MLP 11776 of 12288, all heads: of the shapes near 6 billion parameters that
ModelOpt's search compared, the one that did best on MMLU before any training. Layers go by block importance. Rows of
8192 tokens, 768 in a batch, learning rate 1e-4 falling to 1e-5 after 100 steps, KL alone; of the 80 to 100 billion
tokens that it suggests, 80. DATA is a file, folder or glob of text; without it the hub's FineWeb-Edu.

Meant for v6e-64: each chip works on one row of 8192 tokens at a time, twelve times a step.
"""

from ml_collections import config_dict

from chopjax.commands.defaults import default_config

CHIPS = 64


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """The recipe; `arg` is a path of text to train on."""
    config = default_config()
    config.source = "Qwen/Qwen3-8B"
    config.plan.layers_by = "block_importance"
    config.plan.remove_layers = 6
    config.plan.widths_by = "activation"  # by the aggregation that Minitron took, without trying others
    config.plan.embed = 3584
    config.plan.mlp = 11_776
    config.score.rows = 1024
    config.data.sources = ({"path": arg} if arg else {"hub": "HuggingFaceFW/fineweb-edu", "subset": "sample-100BT"},)
    config.data.length = 8192
    config.data.heldout_fraction = 0.001
    config.train.batch = 768
    config.train.steps = 12_716  # 80e9 tokens
    config.train.warmup_steps = 100
    config.train.evaluate_every = 500
    config.evaluate.rows = 1024
    config.train.accumulate = 12
    config.score.batch = config.evaluate.batch = CHIPS
    config.loss.chunk = CHIPS * 512  # each makes the logits of 512 tokens at a time
    return config
