"""The one exception that means "your input, not our code"."""


class UserError(Exception):
    """Bad input, said in one line that names the field, file or tensor and the mend.

    `chopjax.commands.cli` prints the line and exits with status 2; anything else is a bug and keeps its traceback.
    """
