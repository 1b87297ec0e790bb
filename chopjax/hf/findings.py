"""What a check of a folder reports."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something to know about a folder.

    Attributes:
        severity: "error" if a reader would fail or be wrong, "warning" otherwise.
        subject: the file, tensor or config key.
        message: the fault, and how to fix it.
    """

    severity: Literal["error", "warning"]
    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.subject}: {self.message}"


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
