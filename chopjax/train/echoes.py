"""What libraries print of a failed read, around the one line that says what is the matter."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

# Orbax found nothing that reads a damaged part; asyncio tells of other reads that failed likewise, which nobody awaits.
_LOGGED = ("Failed to get metadata for checkpointable", "Task exception was never retrieved")
_LATE = "Event loop is closed"
_hook, _failed = sys.unraisablehook, False


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Meanwhile a failure is said by its exception alone; and from a failure on, for the rest of the process.

    Orbax reads many arrays at once and closes its event loop at the first failure. The reads that are under way then
    find it closed, whenever they end, and print a traceback each, out of threads that are not Python's.
    """
    global _hook, _failed
    for logger in _loggers():
        logger.addFilter(_is_news)
    if sys.unraisablehook is not _unraisable:
        _hook, sys.unraisablehook = sys.unraisablehook, _unraisable
    try:
        yield
    except BaseException:
        _failed = True
        raise
    if _failed:
        return
    sys.unraisablehook = _hook
    for logger in _loggers():
        logger.removeFilter(_is_news)


def _loggers() -> list[logging.Logger]:
    return [logging.getLogger(name) for name in ("absl", "asyncio")]


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LOGGED)


def _unraisable(unraisable: Any) -> None:
    if _LATE not in str(unraisable.exc_value):
        _hook(unraisable)
