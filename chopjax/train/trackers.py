"""Metrics elsewhere than in the workdir's own file: TensorBoard, Weights & Biases."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from chopjax import paths
from chopjax.errors import UserError


class TensorBoard:
    """Event files under `WORKDIR/tensorboard`; values of later steps than `resumed_at` are purged from the display.

    Args:
        workdir: folder of the run.
        resumed_at: step of the checkpoint that the run goes on from; None for a run that starts anew.
    """

    def __init__(self, workdir: str | os.PathLike[str], resumed_at: int | None = None) -> None:
        import tensorboardX  # costs a second that a run without it need not spend

        purge = None if resumed_at is None else resumed_at + 1
        self._writer = tensorboardX.SummaryWriter(str(pathlib.Path(workdir) / "tensorboard"), purge_step=purge)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Adds the values of one step."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A run on Weights & Biases, the same one again when the run is resumed.

    Args:
        project: its project there.
        workdir: folder of the run; its name is the run's name.
        config: the resolved config.
        part: which part of the run this is, where it has several; goes behind the name.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(
        self, project: str, workdir: str | os.PathLike[str], config: Mapping[str, Any], part: str = ""
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("train.wandb is set but wandb is not installed; pip install 'chopjax[wandb]'") from error
        folder = paths.absolute(paths.make(workdir))
        name = f"{folder.name}-{part}" if part else folder.name
        here = None if paths.is_remote(folder) else str(folder)
        self._run = wandb.init(project=project, name=name, id=name, dir=here, config=dict(config), resume="allow")

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Sends the values of one step."""
        self._run.log({name: value for name, value in values.items() if value is not None}, step=step)

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()
