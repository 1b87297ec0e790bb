"""Mistral-NeMo-12B to 8.4B by width: MN-Minitron-8B (arXiv 2408.11796, tables 3 and 4).

    python -m chopjax.train --config configs/mistral_nemo_12b_to_8b.py[:DATA] --config.workdir=gs://BUCKET/mn-minitron-8b

Hidden size 4096 of 5120 and MLP 11520 of 14336; all heads and all 40 layers stay. 380 billion tokens, learning rate
1e-4 falling to 4.5e-7, KL alone. DATA is a file, folder or glob of text; without it the hub's FineWeb-Edu stands in for
the paper's own text, which is not public. The source is gated on the hub.

Meant for v6e-128: each chip works on one row of 8192 tokens at a time, six times a step.
"""

from ml_collections import config_dict

from chopjax.commands.defaults import default_config

CHIPS = 128


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """The recipe; `arg` is a path of text to train on."""
    config = default_config()
    config.source = "mistralai/Mistral-Nemo-Base-2407"
    config.plan.widths_by = "activation"  # by the aggregation that Minitron took, without trying others
    config.plan.embed = 4096
    config.plan.mlp = 11_520
    config.score.rows = 1024
    config.data.sources = ({"path": arg} if arg else {"hub": "HuggingFaceFW/fineweb-edu"},)
    config.data.length = 8192
    config.data.heldout_fraction = 0.001
    config.train.batch = 768
    config.train.steps = 60_399  # 380e9 tokens
    config.train.warmup_steps = 60
    config.train.learning_rate = 1e-4
    config.train.final_fraction = 4.5e-3  # 4.5e-7
    config.train.evaluate_every = 1000
    config.evaluate.rows = 1024
    config.train.accumulate = 6
    config.score.batch = config.evaluate.batch = CHIPS
    config.loss.chunk = CHIPS * 512  # each makes the logits of 512 tokens at a time
    return config
