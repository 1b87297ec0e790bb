"""Lists of integers written as text with inclusive ranges: `0-3,12-31`."""

import re

from chopjax.errors import UserError

_PART = re.compile(r"(\d+)(?:-(\d+))?")
# More than any model has of anything, and few enough to hold.
_MOST = 1 << 20


def parse(text: str, name: str) -> tuple[int, ...]:
    """The integers of a text such as `0-3, 7, 12-31`, in the order given; both ends of a range belong to it.

    Args:
        text: numbers and ranges of numbers, separated by commas.
        name: the field that holds the text, for messages.

    Raises:
        UserError: a part is neither a number nor a range that ascends.
    """
    found: list[int] = []
    for part in text.strip().strip("()[]").split(","):
        if not part.strip():
            continue
        match = _PART.fullmatch(part.replace(" ", ""))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first >= _MOST:
            raise UserError(f"{name} has {part.strip()!r}; give numbers and ascending ranges, such as 0-3,12-31")
        found.extend(range(first, last + 1))
    return tuple(found)
