"""Text to packed rows, once."""

from chopjax.commands.run import Run, begin
from chopjax.commands.settings import Settings


def main(chosen: Settings) -> None:
    """Prepares the rows of `data.sources` and prints what there is."""
    describe(begin(chosen))


def describe(run: Run) -> None:
    """One line for each source, with its tokens and rows."""
    for line in run.data.describe():
        run.say(line)
