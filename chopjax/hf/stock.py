"""What stock `transformers` on PyTorch makes of a folder, where both are installed."""

import importlib.util
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from chopjax import paths
from chopjax.hf.checkpoint import Checkpoint

# A larger model is left to whoever serves it: its float32 copy would not fit beside the run.
LARGEST_BYTES = 4 << 30


def available(checkpoint: Checkpoint) -> bool:
    """Whether PyTorch is installed, and the model on this machine and small enough to be loaded once more."""
    return (
        importlib.util.find_spec("torch") is not None
        and not paths.is_remote(checkpoint.place)
        and sum(entry.nbytes for entry in checkpoint.tensors.values()) <= LARGEST_BYTES
    )


def difference(checkpoint: Checkpoint, tokens: Sequence[int], ours: Float[np.ndarray, "length vocab"]) -> float:
    """Largest difference of float32 logits from ours, over the largest of ours.

    Args:
        checkpoint: what `transformers` loads.
        tokens: token ids, taken modulo the vocabulary.
        ours: our float32 logits for them.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits = model(torch.tensor([[token % checkpoint.config.vocab for token in tokens]])).logits[0]
    return float(np.abs(logits.numpy() - ours).max() / np.abs(ours).max())
