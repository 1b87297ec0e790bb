"""FLOPs of the TPU kernels in a training step, of which the compiler's own figures hold nothing."""

import collections

from chopjax.aot.steps import TrainingStep
from chopjax.models import splash
from chopjax.models.config import ModelConfig

# Ways of rematerialisation that keep what the kernel's backward pass needs, so that its forward pass is not run again.
KEPT = ("none",)


def splash_flops(step: TrainingStep) -> float:
    """FLOPs of splash attention in a step, over all devices; 0 where the reference computes the attention."""
    if step.mesh.attention not in ("auto", "splash"):
        return 0.0
    again = 0 if step.step.remat in KEPT else splash.FORWARD
    learnt = splash.FORWARD + again + splash.BACKWARD
    total = _flops(step.student, step.length, learnt)
    if step.teacher is not None:
        total += _flops(step.teacher, step.length, learnt if step.learning else splash.FORWARD)
    return float(step.rows * total)


def _flops(config: ModelConfig, length: int, products: int) -> int:
    """Of one row, all layers."""
    layers = collections.Counter(config.kinds[kind].window for kind in config.kind_of_layer)
    heads, size = config.q_heads, config.head_dim
    return sum(number * splash.flops(length, heads, size, window, products) for window, number in layers.items())
