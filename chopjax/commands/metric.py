"""What `plan.metric` names: a loss over calibration rows, questions with several answers, or any function."""

from typing import Any, get_args

from chopjax import files
from chopjax.commands import score
from chopjax.commands.run import Run
from chopjax.evaluate.choices import choices_metric, load_items
from chopjax.score.candidates import LossMetric
from chopjax.score.metric import Metric, load_metric

CHOICES = "choices:"


def is_loss(run: Run) -> bool:
    """Whether it is a loss over calibration rows, for which candidates need not be chopped."""
    return run.settings.plan.metric in get_args(LossMetric)


def check(run: Run) -> None:
    """Refuses a metric that could not be used.

    Raises:
        UserError: a file or a function that is not there.
    """
    name = run.settings.plan.metric
    if name.startswith(CHOICES):
        load_items(name.removeprefix(CHOICES))
    elif not is_loss(run):
        load_metric(name)


def function(run: Run) -> Metric:
    """The metric as a function of a chopped model, where it is no loss over calibration rows."""
    name = run.settings.plan.metric
    if not name.startswith(CHOICES):
        return load_metric(name)
    batch, length = run.settings.score.batch, run.data.length
    return choices_metric(run.tokenizer, name.removeprefix(CHOICES), batch, length, **score.loss_options(run))


def inputs(run: Run) -> dict[str, Any]:
    """The metric as an input of a stage."""
    name = run.settings.plan.metric
    found = {"plan.metric": name}
    return found | ({"choices": files.fingerprint(name.removeprefix(CHOICES))} if name.startswith(CHOICES) else {})
