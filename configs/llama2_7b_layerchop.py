"""Llama-2-7B without half of its layers, by LayerCHOP (Just CHOP, arXiv 2305.14864, section 4.1 and table 4).

    python -m chopjax.train --config configs/llama2_7b_layerchop.py[:DATA] --config.workdir=gs://BUCKET/llama2-layerchop

Layers 1 to 16, counted from 0, go; then plain continued pretraining on C4, without a teacher. DATA is a file, folder
or glob of text in place of C4 from the hub. The source is gated on the hub. AdamW with b1 = 0.9, b2 = 0.95 and weight
decay 0.1, and a cosine to a tenth of the peak, are the defaults. The paper does not give the sequence length; it is
that of the source.

Meant for v5e-64: each chip works on one row of 4096 tokens at a time, sixteen times a step.
"""

from ml_collections import config_dict

from chopjax.commands.defaults import default_config

CHIPS = 64


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """The recipe; `arg` is a path of text to train on."""
    config = default_config()
    config.source = "meta-llama/Llama-2-7b-hf"
    config.plan.layers_by = "input"
    config.plan.remove_layers = 16
    config.loss.next_token = 1.0
    config.loss.kl = 0.0
    config.data.length = 4096
    if arg:
        config.data.sources = ({"path": arg},)
        config.data.heldout_fraction = 0.001
    else:
        c4 = {"hub": "allenai/c4", "subset": "en"}
        config.data.sources = (c4, c4 | {"split": "validation", "heldout": True})
        config.data.heldout_fraction = 0.0
    config.train.batch = 1024
    config.train.steps = 38_147  # 160e9 tokens
    config.train.steps_before_chop = 500
    config.train.learning_rate = 3e-4
    config.train.warmup_steps = 2000
    config.train.evaluate_every = 1000
    config.evaluate.rows = 3264  # 13.4 million tokens
    config.train.accumulate = 16
    config.score.batch = config.evaluate.batch = CHIPS
    config.loss.chunk = CHIPS * 512  # each makes the logits of 512 tokens at a time
    return config
