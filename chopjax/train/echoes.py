"""What libraries print of a failed read or write, around the one line that says what is the matter."""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax

# Orbax found nothing that reads a damaged part; asyncio tells of other reads that failed likewise, which nobody awaits.
_LOGGED = ("Failed to get metadata for checkpointable", "Task exception was never retrieved")
_LATE = ("Event loop is closed", "Encountered error while reading array index")
# How TensorStore puts a system's error, or that of a store, into its text.
_NUMBER = re.compile(r"os_error_code='(\d+)'|OS error (\d+)")
_STATUS = re.compile(
    r"(RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|NOT_FOUND|DATA_LOSS): "
)
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


def silence_refused_writes() -> None:
    """From now on no log record shows a write that the storage refused.

    Orbax writes in background threads. Each of them logs the failure with a traceback before the exception reaches the
    thread that asked for the write.
    """
    for logger in _loggers():
        logger.addFilter(_is_no_refusal)


def refusal(error: BaseException | None) -> str:
    """Why the storage refused a write, such as `No space left on device`; empty for any other error.

    An `OSError` may be the cause of another exception. TensorStore gives its number, or the status of a store, in the
    text of a `ValueError`. A write that failed because another process is gone is no refusal.
    """
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    if any(isinstance(link, jax.errors.JaxRuntimeError) for link in chain):
        return ""
    return next(filter(None, map(_refusal, chain)), "")


def _refusal(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        return error.strerror or text or type(error).__name__
    if found := _NUMBER.search(text):
        return os.strerror(int(found[1] or found[2]))
    return text[:200] if isinstance(error, ValueError) and _STATUS.match(text) else ""


def _loggers() -> list[logging.Logger]:
    return [logging.getLogger(name) for name in ("absl", "asyncio")]


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LOGGED)


def _is_no_refusal(record: logging.LogRecord) -> bool:
    return not (record.exc_info and refusal(record.exc_info[1]))


def _unraisable(unraisable: Any) -> None:
    if not any(late in str(unraisable.exc_value) for late in _LATE):
        _hook(unraisable)
