"""Llama-3.1-8B to 4.5B by width: Llama-3.1-Minitron-4B-Width (arXiv 2408.11796, tables 3 and 4).

    python -m chopjax.train --config configs/llama31_8b_to_4b_width.py[:DATA] --config.workdir=gs://BUCKET/llama31-4b-width

DATA is a file, folder or glob of text; without it the hub's FineWeb-Edu stands in for the paper's own text, which is
not public. The source is gated on the hub. Learning rate 1e-4 falling to 1e-5 and KL alone are the defaults.

Meant for v5e-64: each chip works on one row of 8192 tokens at a time, eighteen times a step.
"""

from ml_collections import config_dict

from chopjax.commands.defaults import default_config

CHIPS = 64


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """The recipe; `arg` is a path of text to train on."""
    config = default_config()
    config.source = "meta-llama/Llama-3.1-8B"
    config.plan.widths_by = "activation"  # by the aggregation that Minitron took, without trying others
    config.plan.embed = 3072
    config.plan.mlp = 9216
    config.score.rows = 1024
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
