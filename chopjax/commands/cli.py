"""The command line of every `python -m chopjax.X`: parse, force the config, say bad input in one line, exit with 2.

absl alone gives tracebacks and status 1, and loads the config only at its first use. Nothing here imports jax; the
command's own module is imported only after its config has been read and checked. What takes longer to import than to
say is imported after SIGTERM is caught.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from chopjax.errors import Diverged, Preempted, UserError
from chopjax.train import preemption

if TYPE_CHECKING:
    from ml_collections import config_dict

    from chopjax.commands import settings

Main = Callable[..., None]
"""Takes the settings and, where a command has flags of its own, what was given of them."""

EXIT_DIVERGED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130
# What a folder or a disk refuses, or a damaged one fails at; any other OSError is a bug.
_REFUSED = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.EREMOTEIO, errno.EMFILE, errno.ENFILE),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP),
}
_FULL = "No space left on device"
_OVERRIDE = re.compile(r"--?(?:no)?config\.([\w.]+)")
# ml_collections lists the whole config where a locked one has no such field.
_OTHER_FIELDS = re.compile(r"Other fields present: .*(?=Did you mean)|Other fields present: .*", re.DOTALL)


def run(
    command: str | Main,
    positional: str = "",
    required: Sequence[str] = ("source", "workdir"),
    own: argparse.ArgumentParser | None = None,
) -> None:
    """Runs a command with the settings of `sys.argv`.

    Bad input, in the config or found later as a `UserError`, is one line on stderr and exit status 2, and so is what a
    folder or a disk refuses; an interruption from the keyboard is one line and 130; SIGTERM is one line and 0 (or
    `$CHOPJAX_PREEMPTED_STATUS`), once all is left so that the same command goes on; training that went wrong is one
    line and 1, and so is another process that is gone; any other exception is a bug and keeps its traceback and
    status 1.

    Args:
        command: a module of `chopjax.commands`, imported after the config was read, or its `main` itself.
        positional: dotted field that a single argument without a flag sets; with it, `--config` may be left out.
        required: top-level fields that must not be empty; not asked for where the positional argument is given.
        own: flags of the command beside the config; what they hold is its second argument.
    """
    try:
        with preemption.caught():
            with preemption.held():  # out of an import an exception may come as another
                from chopjax import platforms

                options, argv = _own_flags(own, sys.argv)
                chosen = parse(argv, positional, required)
                platforms.skip_absent_tpus()
                platforms.allow_pinned_memory()
                main = _main_of(command) if isinstance(command, str) else command
            main(chosen, *options)
            _leave()
    except (Exception, KeyboardInterrupt, Preempted) as error:
        if stop := _told(error):
            if said := "told to end (SIGTERM); the same command goes on" if stop.said is None else stop.said:
                print(said, flush=True)
            _leave()
            # Kubernetes takes a process that ended with 0 for done; tools/gke_xpk.sh asks for one that is restarted.
            sys.exit(int(os.environ.get("CHOPJAX_PREEMPTED_STATUS", "0")))
        if not (ending := _ending(error)):
            _end_if_another_is_gone(error)
            raise
        print(ending[0], file=sys.stderr)
        _leave(ending[0])
        sys.exit(ending[1])


def _told(error: BaseException | None) -> Preempted | None:
    """That the process was told to end, also where a library made something else of it on the way."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, Preempted):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _leave(line: str = "") -> None:
    """Tells other processes, if there are any, that this one ends."""
    if peers := sys.modules.get("chopjax.sharding.peers"):
        peers.leave(line)


def _end_if_another_is_gone(error: BaseException) -> None:
    """Ends with one line and status 1 where an exchange failed because another process is gone."""
    peers = sys.modules.get("chopjax.sharding.peers")
    if peers and (line := peers.gone(error)):
        peers.end(line)


def _ending(error: BaseException) -> tuple[str, int] | None:
    """The line and the exit status that an exception ends with; None for a bug."""
    match error:
        case Diverged():
            return f"error: {_one_line(error)}", EXIT_DIVERGED
        case UserError():
            return f"error: {_one_line(error)}", EXIT_BAD_INPUT
        case KeyboardInterrupt():
            return "interrupted; the same command goes on where it was", EXIT_INTERRUPTED
        case OSError() | RuntimeError() | ValueError() if reason := _refusal(error):
            return f"error: {reason}; see to the path, its permissions and the space left", EXIT_BAD_INPUT
    return None


def _own_flags(
    own: argparse.ArgumentParser | None, argv: list[str]
) -> tuple[tuple[argparse.Namespace, ...], list[str]]:
    """What was given of a command's own flags, and all other arguments."""
    if own is None:
        return (), argv
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(own.format_help())
        return (), argv

    def refuse(message: str) -> NoReturn:
        raise UserError(message)

    own.error = refuse  # type: ignore[method-assign]  # argparse would print its usage too
    found, rest = own.parse_known_args(argv[1:])
    return (found,), [argv[0], *rest]


def _refusal(error: Exception) -> str:
    """What a folder or a disk refused, in one line; empty for anything else. Libraries hide a full disk in words."""
    if not isinstance(error, OSError):
        return f"{_FULL} ({_one_line(error)[:300]})" if _FULL in str(error) else ""
    place = f"{error.filename2 or error.filename}: " if error.filename else ""
    return f"{place}{error.strerror}" if error.errno in _REFUSED else ""


def parse(argv: Sequence[str], positional: str = "", required: Sequence[str] = ()) -> settings.Settings:
    """Reads `--config FILE[:arg]`, dotted overrides and at most one positional argument.

    Args:
        argv: as `sys.argv`, the program's name first.
        positional: see `run`.
        required: see `run`.

    Returns:
        the checked settings.

    Raises:
        UserError: anything wrong with them.
        SystemExit: after `--help`.
    """
    if {"--help", "-help", "-h"} & set(argv[1:]):
        try:
            print(_help(argv[0], positional), flush=True)
        except BrokenPipeError:  # whoever reads it has enough, as `head` has; the end of the process would say it again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    from chopjax.commands import settings

    config, arguments = _load(list(argv), positional)
    if len(arguments) > bool(positional):
        wanted = f"one {positional} is enough" if positional else "overrides are written --config.field=value"
        raise UserError(f"{arguments[-1]!r} is not expected; {wanted}")
    if arguments:
        config.update_from_flattened_dict({positional: arguments[0]})
    chosen = settings.from_mapping(config)
    if not arguments:
        chosen.require(*required)
    return chosen


def _load(argv: list[str], positional: str) -> tuple[config_dict.ConfigDict, list[str]]:
    """The overridden ConfigDict and the arguments that are no flags."""
    from absl import flags
    from ml_collections import config_flags

    from chopjax.commands import defaults

    place, rest = _split(argv)
    if place is None and (not positional or all(argument.startswith("-") for argument in rest[1:])):
        other = f" or {positional}" if positional else ""
        raise UserError(f"--config is missing; give a config file{other}, such as --config configs/quickstart.py")
    config = defaults.default_config() if place is None else _read(*place)
    _refuse_unknown_overrides(rest)
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
    try:
        arguments = values(rest)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(_one_line(error)) from error
    return config, arguments


def _split(argv: list[str]) -> tuple[tuple[str, ...] | None, list[str]]:
    """`--config FILE[:arg]` as `(FILE,)` or `(FILE, arg)`, or None; and everything else."""
    for index, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            taken = 1 if equals else 2
            given = value if equals else "".join(argv[index + 1 : index + 2])
            return tuple(given.split(":", 1)), argv[:index] + argv[index + taken :]
    return None, argv


def _read(path: str, *argument: str) -> config_dict.ConfigDict:
    """Runs the config file's `get_config`; its mistakes are said with their line, its bugs keep their traceback."""
    from ml_collections import config_dict

    if not os.path.isfile(path):
        raise UserError(f"config file {path or '(empty)'} does not exist; --config wants a Python file")
    try:
        config = runpy.run_path(path)["get_config"](*argument)
    except SyntaxError as error:
        raise UserError(f"{error.filename} line {error.lineno}: {error.msg}") from error
    except (UserError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f"{path} line {lines[-1]}" if lines else path
        raise UserError(f"{where}: {_one_line(error)}") from error
    if not isinstance(config, config_dict.ConfigDict):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}; return default_config(), changed")
    return config.lock()


def _refuse_unknown_overrides(argv: Sequence[str]) -> None:
    from chopjax import checks
    from chopjax.commands import settings

    known = list(settings.Settings().dotted())
    top = {name.split(".")[0] for name in known}
    for argument in argv[1:]:
        match = _OVERRIDE.match(argument)
        if match is None or match[1] in known or match[1] in top:
            continue
        section = match[1].split(".")[0]
        siblings = [name for name in known if name.startswith(f"{section}.")]
        mend = checks.near(match[1], siblings or known, listed=siblings or top)
        raise UserError(f"--config.{match[1]} is not a field; {mend}")


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = _OTHER_FIELDS.sub("", text)
    return " ".join(text.split()) or type(error).__name__


def _main_of(command: str) -> Main:
    return importlib.import_module(f"chopjax.commands.{command}").main


def _help(program: str, positional: str) -> str:
    from chopjax.commands import settings

    folder, name = os.path.split(program)
    name = os.path.basename(folder) if name == "__main__.py" else name.removesuffix(".py")
    usage = f"usage: python -m chopjax.{name} --config FILE[:ARGUMENT] [--config.FIELD=VALUE ...]"
    lines = [usage + (f" [{positional}]" if positional else ""), "", "Fields and their defaults:"]
    lines += [f"  --config.{field}={value!r}" for field, value in settings.Settings().dotted().items()]
    return "\n".join(lines)
