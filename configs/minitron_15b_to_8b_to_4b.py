"""Nemotron-4 15B to Minitron 8B, and that to Minitron 4B, in two rounds (arXiv 2407.14679, table 10 and section 4).

    python -m chopjax.train --config configs/minitron_15b_to_8b_to_4b.py[:DATA] \\
        --config.source=NEMOTRON4_15B --config.workdir=gs://BUCKET/minitron

Round 1 keeps hidden size 4096 of 6144 and MLP 16384 of 24576, and all 48 heads. Round 2 chops what came of that: hidden
size 3072, MLP 9216, 24 query heads for the same 8 key/value heads, dropped heads leaving a residual in kept ones. The
15B teaches both. Each round trains on 94 billion tokens with a learning rate of 2e-4 falling to 4.5e-7 (the paper
prints "2^-4" and "4.5^-7"), KL alone.

NVIDIA did not publish Nemotron-4 15B: SOURCE is a folder of yours, of `NemotronForCausalLM` with these sizes. DATA is a
file, folder or glob of text; without it the hub's FineWeb-Edu stands in for the paper's own text, which is not public.

Meant for v5p-128 (64 chips): each chip works on three rows of 4096 tokens at a time, six times a step.
"""

from ml_collections import config_dict

from chopjax.commands.defaults import default_config

CHIPS = 64


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """The recipe; `arg` is a path of text to train on."""
    config = default_config()
    config.rounds = (
        {"plan.embed": 4096, "plan.mlp": 16_384},
        {"plan.embed": 3072, "plan.mlp": 9216, "plan.q_per_kv": 3, "plan.head_residual": "minitron"},
    )
    config.plan.widths_by = "activation"  # by the aggregation that Minitron took, without trying others
    config.score.rows = 1024
    config.data.sources = ({"path": arg} if arg else {"hub": "HuggingFaceFW/fineweb-edu", "subset": "sample-100BT"},)
    config.data.length = 4096
    config.data.heldout_fraction = 0.001
    config.train.batch = 1152
    config.train.steps = 19_921  # 94e9 tokens
    config.train.warmup_steps = 0  # the paper names none
    config.train.learning_rate = 2e-4
    config.train.final_fraction = 2.25e-3  # 4.5e-7
    config.train.evaluate_every = 500
    config.evaluate.rows = 2048
    config.train.accumulate = 6
    config.score.batch = config.evaluate.batch = CHIPS
    config.loss.chunk = CHIPS * 512  # each makes the logits of 512 tokens at a time
    return config
