"""The small files of a workdir, and checkpoints of training."""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from torture import mutate
from torture.sandbox import Reader
from torture.targets.target import Draw, Target, read_json

Read = Callable[[pathlib.Path], Any]


def _report(run: pathlib.Path) -> None:
    from chopjax.report import page
    from chopjax.report.reader import read_run

    page.render(read_run(run))


def _metrics(run: pathlib.Path) -> None:
    from chopjax.train.metrics import MetricsWriter

    with MetricsWriter(run, resumed_at=6) as writer:
        writer.write(7, {"loss": 1.0})
    _report(run)


def _goodput(run: pathlib.Path) -> None:
    from chopjax.train.goodput import Goodput

    goodput = Goodput(run, 6)
    goodput.spent(1.0)
    if not 0 <= goodput.share <= 1:
        raise ValueError(f"a share of {goodput.share}")
    goodput.save(8, 0)


def _stage(name: str, *outputs: str, resumable: bool = False) -> Read:
    def read(run: pathlib.Path) -> None:
        from chopjax.commands.stages import Stage, Stages

        stages = Stages(run, say=lambda line: None)
        stages.pending(Stage(name, outputs, resumable), {"a": 1})
        stages.digest(name)

    return read


def _config(run: pathlib.Path) -> None:
    from chopjax.commands import settings

    settings.written(run)
    _report(run)


def _verify(run: pathlib.Path) -> None:
    from chopjax.hf.verify import verify_folder

    verify_folder(run / "export")


FILES: Mapping[str, Read] = {
    "metrics.jsonl": _metrics,
    "goodput.json": _goodput,
    "stages/train.json": _stage("train", "checkpoints", resumable=True),
    "stages/plan.json": _stage("plan", "plan.json"),
    "stages/export.json": _stage("export", "export"),
    "config.json": _config,
    "plan.json": _report,
    "evaluation.json": _report,
    "samples.json": _report,
    "summary.json": _report,
    "removal.json": _report,
    "search.json": _report,
    "export/config.json": _verify,
    "export/generation_config.json": _verify,
}


def workdir_json(draw: Draw) -> Reader:
    run = pathlib.Path(shutil.copytree(draw.bench.finished, draw.folder / "run", ignore=_large))
    file = run / draw.kind
    if draw.kind == "metrics.jsonl":
        lines = file.read_bytes().splitlines()
        at = draw.rng.randrange(len(lines))
        lines[at] = mutate.json_bytes(draw.rng, mutate.json_value(draw.rng, json.loads(lines[at])))
        file.write_bytes(b"\n".join(lines) + b"\n")
    else:
        value = read_json(file) if file.exists() else {"a": 1, "bos_token_id": 1, "trials": [], "layers": [1, 2]}
        file.write_bytes(mutate.json_bytes(draw.rng, mutate.json_value(draw.rng, value)))

    def read() -> str:
        FILES[draw.kind](run)
        return ""

    return read


def _large(folder: str, names: list[str]) -> list[str]:
    """What no reader here needs."""
    return [name for name in names if name in ("checkpoints", "cache", "rows", "student")]


DAMAGE = ("one bit", "one bit of the arrays", "changed bytes", "a file gone", "an empty file")


def checkpoint_files(draw: Draw) -> Reader:
    folder = draw.copy("checkpoints")
    newest = folder / str(_steps(folder)[-1])
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    large = max(files, key=lambda path: path.stat().st_size)
    file = large if draw.kind == "one bit of the arrays" else draw.rng.choice(files)
    raw = file.read_bytes()
    match draw.kind:
        case "one bit" | "one bit of the arrays":
            file.write_bytes(mutate.one_bit(draw.rng, raw))
        case "changed bytes":
            file.write_bytes(mutate.changed_bytes(draw.rng, raw))
        case "a file gone":
            file.unlink()
        case "an empty file":
            file.write_bytes(b"")
    name = file.relative_to(newest)

    def read() -> str:
        sound = draw.bench.finished / "checkpoints"
        steps, identity = _steps(sound), _identity(sound)
        step, arrays, position = _resumed(folder, identity)
        if step == steps[-2]:  # the newest was found to be damaged
            return ""
        if step != steps[-1]:
            return f"{name}: goes on from step {step}"
        _, saved, place = _resumed(pathlib.Path(shutil.copytree(sound, draw.folder / "sound")), identity)
        differing = sum(one != other for one, other in zip(arrays, saved, strict=True))
        if differing:
            return f"{name}: {differing} arrays other than those saved were accepted"
        return f"{name}: position {position}" if position != place else ""

    return read


def _steps(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def _identity(folder: pathlib.Path) -> dict[str, Any]:
    return read_json(next((folder / str(_steps(folder)[-1])).rglob("identity/*.json")))


def _resumed(folder: pathlib.Path, identity: dict[str, Any]) -> tuple[int, list[bytes], dict[str, Any]]:
    """The step that training would go on from, the bytes of its arrays, and its place in the data."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    from chopjax.train.checkpoints import Checkpoints

    jax.config.update("jax_platforms", "cpu")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    oldest = folder / str(_steps(folder)[0])
    shapes = ocp.checkpointables_metadata(oldest).metadata["state"]
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
    with Checkpoints(folder, identity, keep=5) as checkpoints:
        restored = checkpoints.resume(abstract)
    assert restored is not None
    arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(restored.state)]
    return restored.step, arrays, restored.position


TARGETS = (
    Target("workdir_json", workdir_json, list(FILES)),
    Target("checkpoint_files", checkpoint_files, DAMAGE, every=4),
)
