"""Losses by the name of their metric."""

UNITS = {"next_token": "Loss, nats a token", "kl": "KL to the whole model, nats a token"}


def title(metric: str) -> str:
    """What the values of a metric are, with their unit; any other metric is known by its own name."""
    return UNITS.get(metric, metric)
