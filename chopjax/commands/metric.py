"""What `plan.metric` names: a loss over calibration rows, questions with several answers, or any function."""

import functools
import sys
from typing import Any, get_args

from chopjax import files
from chopjax.commands import score
from chopjax.commands.run import Run
from chopjax.evaluate.choices import choices_metric, load_items
from chopjax.score.candidates import LossMetric
from chopjax.score.metric import Metric, load_metric, worth

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
        return functools.partial(worth, load_metric(name))
    batch, length = run.settings.score.batch, run.data.length
    return choices_metric(run.tokenizer, name.removeprefix(CHOICES), batch, length, **score.loss_options(run))


def inputs(run: Run) -> dict[str, Any]:
    """The metric as an input of a stage; of a function its module's file, and not what that imports."""
    name = run.settings.plan.metric
    if is_loss(run):
        return {"plan.metric": name}
    check(run)
    file = name.removeprefix(CHOICES)
    if not name.startswith(CHOICES):
        file = getattr(sys.modules[name.partition(":")[0]], "__file__", None) or sys.executable
    return {"plan.metric": name, "plan.metric (contents)": files.fingerprint(file)}
