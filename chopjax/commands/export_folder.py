"""Whether the export can be written where it is to go, checked before anything slow."""

import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

from chopjax import paths
from chopjax.commands.run import EXPORT
from chopjax.commands.settings import Settings
from chopjax.errors import UserError

# Names in a workdir that the run itself uses.
_USED = re.compile(
    r"\..*|(stages|rows|student_rows|scores|search|student|cache|teacher|pictures|heartbeats|tensorboard|wandb)|"
    r"checkpoints.*|(config|plan|removal|search|evaluation|samples|summary|goodput|rounds|aot)\.json|metrics\.jsonl|"
    r"(plan|report)\.html|sharding\.txt|dimchop\.safetensors"
)
_ROUND = re.compile(r"round-\d+")


def check(chosen: Settings, writer: bool = True) -> None:
    """Refuses an `export.folder` that another field names, that holds or lies in such a folder, or cannot be made.

    Args:
        chosen: the settings of a run, or of a run of several rounds.
        writer: whether this process will write it, and so tries whether it can.

    Raises:
        UserError: names the folder and the field.
    """
    workdir = paths.make(chosen.workdir)
    folder = paths.make(chosen.export.folder) if chosen.export.folder else workdir / EXPORT
    place = _place(folder)
    _check_workdir(chosen, folder, place, _place(workdir))
    for field, other in _others(chosen):
        taken = _place(other)
        if place == taken or place.is_relative_to(taken) or taken.is_relative_to(place):
            how = "is" if place == taken else "lies in" if place.is_relative_to(taken) else "holds"
            raise UserError(f"export.folder: {folder} {how} {field} ({other}); name another folder")
    if paths.is_remote(folder):
        paths.reach(folder, "export.folder")
    elif writer:
        _try(folder, pathlib.Path(place))


def _place(path: pathlib.Path) -> pathlib.PurePath:
    """Where a path leads, links followed."""
    return pathlib.PurePosixPath(str(path)) if paths.is_remote(path) else pathlib.PurePath(os.path.realpath(path))


def _check_workdir(chosen: Settings, folder: pathlib.Path, place: pathlib.PurePath, workdir: pathlib.PurePath) -> None:
    if workdir.is_relative_to(place):
        how = "is" if place == workdir else "holds"
        raise UserError(f"export.folder: {folder} {how} the workdir; name another folder, such as {EXPORT!r} in it")
    if place.is_relative_to(workdir):
        first = place.relative_to(workdir).parts[0]
        if _USED.fullmatch(first) or (chosen.rounds and _ROUND.fullmatch(first)):
            raise UserError(
                f"export.folder: the run keeps other files in {workdir / first}; name another folder, such as "
                f"{workdir / EXPORT}"
            )


def _others(chosen: Settings) -> Iterator[tuple[str, pathlib.Path]]:
    """The folders that other fields name; a hub id is none."""
    named = {"source": chosen.source, "teacher": chosen.teacher, "data.rows": chosen.data.rows}
    named |= {"cache.path": chosen.cache.path, "compilation_cache": chosen.compilation_cache}
    named |= {f"data.sources[{number}]": source.path for number, source in enumerate(chosen.data.sources)}
    for field, value in named.items():
        if value and (paths.is_remote(value) or field in ("cache.path", "compilation_cache") or os.path.isdir(value)):
            yield field, paths.make(value)


def _try(folder: pathlib.Path, place: pathlib.Path) -> None:
    """Writes a file without a name into the nearest folder that is there."""
    parent = next(above for above in place.parents if above.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UserError(
            f"export.folder: {folder} cannot be made, for {parent} refuses new files ({error.strerror}); name another "
            "folder"
        ) from error
