"""Runs in several processes that find each other over loopback, as on hosts, each with CPU devices of its own."""

import os
import pathlib
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence

from end_to_end.runs import Death, Ended, Place, Started, _heal, _server


def start(
    place: Place,
    command: str,
    arguments: Sequence[str],
    processes: int,
    devices: int,
    deaths: Mapping[int, Death] | None = None,
) -> list[Started]:
    """`runs.start` in so many processes of so many devices; `deaths` are by process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for index in range(processes):
        tag = os.urandom(4).hex()
        files = (place.folder / f"{tag}.stdout", place.folder / f"{tag}.stderr")
        joined = (port, processes, index)
        arguments_of_main = (
            command,
            [*arguments, "--config.mesh.distributed"],
            devices,
            (deaths or {}).get(index),
            place,
            list(files),
            joined,
        )
        process = _server().Process(target=_main, args=arguments_of_main)
        process.start()
        started.append(Started(process, files))
    return started


def run(
    place: Place,
    command: str,
    arguments: Sequence[str],
    processes: int,
    devices: int,
    deaths: Mapping[int, Death] | None = None,
) -> list[Ended]:
    """`start`, and waits for the end of all.

    A process that goes on when another has ended otherwise than with 0 is killed after a while.
    """
    started = start(place, command, arguments, processes, devices, deaths)
    bad = False
    for one in started:
        one.process.join(timeout=10 if bad else 200)
        if one.process.exitcode is None:
            one.process.kill()
            one.process.join()
        bad = bad or one.process.exitcode != 0
    return [one.wait() for one in started]


def done(place: Place, command: str, arguments: Sequence[str], processes: int, devices: int) -> list[Ended]:
    """`run`, which must end well."""
    ended = run(place, command, arguments, processes, devices)
    assert [one.status for one in ended] == [0] * processes, "\n".join(one.stderr for one in ended)
    return ended


def _main(
    command: str,
    arguments: list[str],
    devices: int,
    death: Death | None,
    place: Place,
    said: list[pathlib.Path],
    joined: tuple[int, int, int],
) -> None:
    """What such a process does."""
    for number, file in enumerate(said, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    # Each process compiles all by itself; unoptimised code takes half the time.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    import jax

    from chopjax.commands import cli

    jax.config.update("jax_num_cpu_devices", devices)
    for name, value in place.options.items():
        jax.config.update(name, value)
    port, processes, index = joined
    # On a TPU pod JAX finds the other processes by itself; here they are told of each other before the command begins.
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=processes, process_id=index)
    if death:
        death.prepare()
    sys.argv = [command, *arguments]
    status = 1
    try:
        cli.run({"heal": _heal}.get(command, command))
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    if not status:
        jax.distributed.shutdown()  # waits for the others, who would else think that this process had died
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
