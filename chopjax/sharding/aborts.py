"""The line that names process 0 when JAX aborts because process 0 is gone.

JAX's coordination service lives in process 0. When the connection to it breaks, JAX's client aborts within a second, in
a thread of its own, and no Python code is asked: a callback for this case makes jaxlib 0.10 and 0.12 abort too
(`std::bad_cast`). So the signal of the abort is handled. The handler is C's, which calls Python in the aborting thread;
a handler of Python's `signal` module would wait for the main thread, which often waits for process 0.
"""

import ctypes
import signal
import socket
from collections.abc import Callable

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
# The handlers, which C does not keep alive.
_installed: list[object] = []


def report(coordinator: str, line: Callable[[], str], end: Callable[[str], None]) -> None:
    """From now on an abort while the coordinator no longer answers ends the process by `end`; any other abort goes on.

    Args:
        coordinator: `host:port` of JAX's coordination service.
        line: names the process in which it was.
        end: reports the line and ends this process at once.
    """
    host, _, port = coordinator.rpartition(":")

    def aborted(number: int) -> None:
        if not _answers(host.strip("[]"), int(port)):
            end(line())

    handler = _Handler(aborted)
    _installed.append(handler)
    set_handler = ctypes.CDLL(None).signal
    set_handler.restype = ctypes.c_void_p
    set_handler(int(signal.SIGABRT), handler)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True
