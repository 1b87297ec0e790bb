"""SmolLM2-135M without 6 of its 30 layers and a quarter of its MLP, healed by its uncut self in minutes on a CPU.

`make quickstart` makes the model and the text first. The cut is a mild one, for a short run: a model of this size
bears no loss of its first or last layers, and little at all before it is healed.
"""

from ml_collections import config_dict

from chopjax.commands.defaults import default_config
from chopjax.errors import UserError


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """The quickstart; its text is its own, so there is no `arg`."""
    if arg:
        raise UserError(f"this recipe takes no argument; name text as --config.data.sources=\"({{'path': '{arg}'}},)\"")
    config = default_config()
    config.source = "runs/models/smollm2-135m-instruct"
    config.workdir = "runs/quickstart"
    config.data.sources = (
        {"path": "runs/text/train.jsonl"},
        {"path": "runs/text/heldout.jsonl", "heldout": True},
    )
    config.data.eos_token = "<|endoftext|>"  # the chat tokenizer ends turns with <|im_end|>; text ended otherwise
    config.data.length = 256
    config.data.heldout_fraction = 0.0
    config.score.rows = 32
    config.plan.layers_by = "angular"
    config.plan.remove_layers = 6
    config.plan.widths_by = "activation"
    config.plan.mlp = 1152
    config.loss.kl = 1.0
    config.train.steps = 20
    config.train.batch = 8
    config.train.learning_rate = 5e-4
    config.train.warmup_steps = 2
    config.train.weight_decay = 0.0
    config.train.compute_dtype = "float32"
    config.train.remat = "dots"
    config.train.log_every = 1
    config.evaluate.rows = 16
    config.evaluate.prompts = ("The capital of France is", "In Python, a list comprehension")
    config.evaluate.new_tokens = 24
    return config
