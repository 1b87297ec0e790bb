"""Llama-3.1-8B to 4.5B by depth: Llama-3.1-Minitron-4B-Depth (arXiv 2408.11796, tables 3 and 4, figure 9).

    python -m chopjax.train --config configs/llama31_8b_to_4b_depth.py[:DATA] --config.workdir=gs://BUCKET/llama31-4b-depth

Layers 15 to 30, counted from 0, go in one block and the last one stays; all else is as in the recipe by width.
DATA is a file, folder or glob of text.

Meant for v5e-64: each chip works on one row of 8192 tokens at a time, eighteen times a step.
"""

from ml_collections import config_dict

from chopjax.commands.defaults import default_config

CHIPS = 64


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """The recipe; `arg` is a path of text to train on."""
    config = default_config()
    config.source = "meta-llama/Llama-3.1-8B"
    config.plan.layers_by = "output"
    config.plan.remove_layers = 16
    config.data.sources = ({"path": arg} if arg else {"hub": "HuggingFaceFW/fineweb-edu", "subset": "sample-100BT"},)
    config.data.length = 8192
    config.data.heldout_fraction = 0.001
    config.train.batch = 1152
    config.train.steps = 9_961  # 94e9 tokens
    config.train.warmup_steps = 40
    config.train.evaluate_every = 500
    config.evaluate.rows = 1024
    config.train.accumulate = 18
    config.score.batch = config.evaluate.batch = CHIPS
    config.loss.chunk = CHIPS * 512  # each makes the logits of 512 tokens at a time
    return config
