"""Compiled programs that outlive their process: JAX's persistent compilation cache, in a folder that a config names.

JAX keeps a program under a digest of all that decides what it is: its text, the devices and their order, the compiler
and what it is told. So what fits no longer is not found, and compiled. What JAX leaves to its users is here: a folder
that cannot be used is said before any work; trouble with an entry is one line; an entry that cannot be read makes way
for a new one, where JAX would compile anew at every start and never replace it.
"""

import collections
import dataclasses
import functools
import pathlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from chopjax import paths
from chopjax.errors import UserError

FIELD = "compilation_cache"
_LOADED, _KEPT = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"
# JAX's own warnings, which name the program.
_READING, _WRITING = (f"Error {doing} persistent compilation cache entry" for doing in ("reading", "writing"))
_TROUBLE = re.compile(rf"({_READING}|{_WRITING}) for '([^']*)': (.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class _Cache:
    folder: pathlib.Path
    say: Callable[[str], None]
    writer: bool


_now: list[_Cache] = []
_counts: collections.Counter[str] = collections.Counter()


def use(folder: pathlib.Path, say: Callable[[str], None], writer: bool = True) -> None:
    """Has this process load its programs from a folder where they are there, and keep there what it compiles.

    Programs that compile in less than a second are not kept (`jax_persistent_cache_min_compile_time_secs`). Of several
    processes, the first keeps and all load.

    Args:
        folder: on a disk or in a store that all processes share. Whoever may write to it may run code here.
        say: prints a line.
        writer: whether this is the first process.

    Raises:
        UserError: the folder cannot be made, or the store does not answer.
    """
    folder = paths.absolute(folder)
    paths.reach(folder, FIELD)
    if not paths.is_remote(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{FIELD}: {folder} cannot be made ({error.strerror}); name another folder") from error
    if not _now or _now[0].folder != folder:
        compilation_cache.set_cache_dir(str(folder))
        compilation_cache.reset_cache()  # JAX opens a cache once
    # XLA's own caches for GPUs lie beside, on disks only; and with them the folder's name would be in every digest.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    _now[:] = [_Cache(folder, say, writer)]
    _install()


def use_for_others(folder: pathlib.Path, say: Callable[[str], None]) -> None:
    """`use`, where programs are compiled for devices that are not there: all are kept, and none can be loaded.

    Raises:
        UserError: as `use`.
    """
    use(folder, say)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    warnings.filterwarnings("ignore", message=_READING)


def tally() -> tuple[int, int]:
    """How many programs were loaded, and how many compiled and kept, since it was last asked."""
    found = _counts[_LOADED], _counts[_KEPT]
    _counts.clear()
    return found


def told() -> str:
    """`tally` in a line; empty without a folder, and where all was compiled too quickly to be kept."""
    loaded, kept = tally()
    if not _now or not loaded + kept:
        return ""
    return f"compiled programs: {loaded} loaded from {paths.shown(_now[0].folder)}, {kept} compiled and kept there"


@functools.cache
def _install() -> None:
    """Counts JAX's events and takes its warnings; once for a process."""

    def count(event: str, **_: Any) -> None:
        _counts[event] += 1

    before = warnings.showwarning

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        found = _TROUBLE.match(str(message))
        if found and _now and _now[0].writer:
            _trouble(_now[0], found[1] == _READING, found[2], " ".join(found[3].split())[:200])
        else:
            before(message, *where, **more)

    jax.monitoring.register_event_listener(count)
    for doing in (_READING, _WRITING):
        warnings.filterwarnings("always", message=doing)
    warnings.showwarning = show


def _trouble(cache: _Cache, reading: bool, program: str, reason: str) -> None:
    folder = paths.shown(cache.folder)
    if not reading:
        cache.say(f"{FIELD}: {program} cannot be kept in {folder} ({reason}); the next start compiles it again")
        return
    cache.say(f"{FIELD}: {program} cannot be loaded from {folder} ({reason}); it is compiled anew")
    # JAX does not say which of the program's entries it was, and writes over none.
    entry = re.compile(rf"{re.escape(program)}-[0-9a-f]{{64}}-cache")
    try:
        for name in filter(entry.fullmatch, paths.inside(cache.folder, nested=False)):
            paths.remove(cache.folder / name)
    except Exception as error:  # each store's client has its own kinds; and only time depends on it
        cache.say(f"{FIELD}: {folder} cannot be cleared of it ({type(error).__name__}); remove {program}-*-cache there")
