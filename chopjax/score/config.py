"""What to score, and on what."""

import dataclasses

from chopjax import checks


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """Forward passes over calibration text.

    Attributes:
        rows: packed rows of calibration text to read, sources mixed by weight. Where the text has fewer, or a small
            source repeats, the log says so.
        skip: rows of the mixture to pass over first, so that several hosts can score different rows.
        loss_rows: the first so many of them on which losses without layers and trials of sizes are measured, each of
            which takes many passes; 0 for all.
        batch: rows in one forward pass, over all devices.
        files: score files of this model that are added up instead of passing over text: from other hosts, other
            domains or earlier runs.
    """

    rows: int = 64
    skip: int = 0
    loss_rows: int = 32
    batch: int = 8
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks.at_least(self, "score", 1, "rows", "batch")
        checks.at_least(self, "score", 0, "skip", "loss_rows")

    @property
    def rows_for_losses(self) -> int:
        """Rows on which losses are measured."""
        return min(self.loss_rows or self.rows, self.rows)
