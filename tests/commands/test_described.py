"""What a model card says of training."""

from chopjax.commands import described
from chopjax.commands.settings import from_mapping


def test_every_loss_with_a_weight_is_named() -> None:
    settings = from_mapping(
        {
            "source": "us/model",
            "loss": {
                "next_token": 0.5,
                "kl": 1.0,
                "jsd": 2.0,
                "jsd_beta": 0.1,
                "mse": 0.25,
                "temperature": 4.0,
                "schedules": (
                    {"field": "kl", "final": 0.2},
                    {"field": "temperature", "final": 1.0},
                    {"field": "wsl", "final": 3.0, "kind": "constant"},
                ),
            },
            "hidden": {"block_output": 1.0, "embedding_table": 2.0, "distance": "normalised_mse", "dynamic": True},
            "correction": {"mode": "before", "steps": 1200},
            "on_policy": {"share": 0.25},
            "train": {"batch": 3},
        }
    )
    assert described.training(settings, 7, 10) == {
        "steps": 7,
        "tokens": 210,
        "loss": "0.5 · next-token loss + (1 to 0.2) · KL to the teacher + 2 · Jensen-Shannon divergence from the "
        "teacher (beta 0.1) + 0.25 · squared distance from the teacher's probabilities + 3 · weighted soft labels + "
        "alpha · (1 · block outputs (normalised mse) + 2 · embedding tables (squared))",
        "temperature": "(4 to 1)",
        "teacher": "us/model, after 1,200 steps on the same text",
        "on-policy": "25% of the batches",
        "learning rate": 1e-4,
    }


def test_the_teacher_is_named_where_one_taught() -> None:
    plain = from_mapping({"source": "us/model", "loss": {"next_token": 1.0, "kl": 0.0}})
    assert described.training(plain, 1, 1)["teacher"] == "none"
    hidden = from_mapping({"source": "us/model", "loss": {"next_token": 1.0, "kl": 0.0}, "hidden": {"heads": 1.0}})
    assert described.training(hidden, 1, 1)["teacher"] == "us/model"
    cached = from_mapping({"source": "a", "teacher": "b", "cache": {"kind": "samples", "samples": 12}})
    assert described.training(cached, 1, 1)["teacher"] == "b (12 random draws a position, cached)"
