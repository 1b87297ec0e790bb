"""The exceptions that end a run in order: bad input, a run that went wrong, and being told to stop."""

from typing import Any

_LONGEST_SHOWN = 120


class UserError(Exception):
    """Bad input, said in one line that names the field, file or tensor and the mend.

    `chopjax.commands.cli` prints the line and exits with status 2; anything else is a bug and keeps its traceback.
    """


class Diverged(Exception):
    """Training went wrong, said in one line that names the step and the mend; the command line exits with status 1."""


class Preempted(BaseException):
    """The process was told to end (SIGTERM) and has left all in order; the command line exits with status 0.

    Like KeyboardInterrupt no `Exception`, so that nothing on the way takes it for a mistake.

    Attributes:
        said: the line to print; empty where another process prints it, None where nobody has said yet what goes on.
    """

    def __init__(self, said: str | None = None) -> None:
        super().__init__(said)
        self.said = said


def short(value: Any) -> str:
    """A value of an input as a message shows it: on one line and of limited length, text without quotes if possible."""
    text = value if isinstance(value, str) and value and value.isprintable() else repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
