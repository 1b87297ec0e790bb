"""The truth about a run before chips are rented for it: its steps, compiled for devices that need not be there."""

import argparse
import dataclasses
import math
import os
import pathlib
import signal
from typing import Any

# Before jax is imported: what is here is no part of the answer, and a TPU's library would look for chips.
os.environ["JAX_PLATFORMS"] = "cpu"

import jax.numpy as jnp  # noqa: E402

from chopjax import files, paths  # noqa: E402
from chopjax.aot import cache, describe, hardware, sweep, topology  # noqa: E402
from chopjax.aot.compiling import Costs  # noqa: E402
from chopjax.aot.estimate import Estimate  # noqa: E402
from chopjax.aot.hardware import Device  # noqa: E402
from chopjax.aot.outlook import Outlook, outlook  # noqa: E402
from chopjax.aot.steps import Step, TrainingStep  # noqa: E402
from chopjax.aot.topology import Slices  # noqa: E402
from chopjax.commands import programs  # noqa: E402
from chopjax.commands.foreseen import Foreseen, foresee  # noqa: E402
from chopjax.commands.settings import Settings  # noqa: E402
from chopjax.commands.spread import check_batches  # noqa: E402
from chopjax.errors import UserError  # noqa: E402
from chopjax.models.parameters import count  # noqa: E402
from chopjax.sharding.attention import refuse_unsupported  # noqa: E402
from chopjax.sharding.rules import other_slices  # noqa: E402
from chopjax.sharding.table import format_table, table  # noqa: E402

REPORT = "aot.json"


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked for.

    Attributes:
        found: models and steps of the run.
        step: its training step, on a mesh that goes over all slices.
        now: the same with the mesh as the config has it; other settings are said against it.
        slices: what is compiled for.
        device: the peaks of one device.
        folder: where costs are kept.
        anew: whether everything is compiled in any case.
    """

    found: Foreseen
    step: TrainingStep
    now: TrainingStep
    slices: Slices
    device: Device
    folder: pathlib.Path
    anew: bool

    @property
    def estimate(self) -> Estimate:
        """Of the training step."""
        return Estimate(self.step, self.slices.devices)

    def costs(self, step: Step) -> Costs:
        """Of any step."""
        return cache.costs(step, self.slices, self.folder, anew=self.anew)

    def outlook(self, step: TrainingStep, costs: Costs | None) -> Outlook:
        """Of any training step."""
        return outlook(step, self.slices, costs)


def main(chosen: Settings, options: argparse.Namespace) -> None:
    """Prints what a run takes on some topology; the figures of what is compiled also go to `WORKDIR/aot/aot.json`.

    Raises:
        UserError: models, mesh or topology that do not go together; no compiler for the topology.
    """
    # Python hears no signal while a compiler works for minutes, and nothing here has to be left in order.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    slices = topology.parse(options.topology)
    if (options.sweep or options.fit) and options.step not in ("train", "all"):
        raise UserError(f"--step {options.step}: --sweep and --fit are of the training step; leave one of them out")
    if options.save and (options.sweep or options.fit or not chosen.compilation_cache):
        raise UserError(
            "--save keeps a run's own steps in compilation_cache; name a folder there, and no --sweep or --fit"
        )
    if options.save and slices.gpus:
        raise UserError("--save: no run on a GPU would find the program, since what JAX keeps it under differs there")
    if options.estimate and (options.sweep or options.fit or options.save or options.step != "train"):
        raise UserError("--estimate compiles nothing, and is of the training step; leave out what else is asked for")
    over = _over_slices(chosen, slices)
    paths.reach(paths.make(chosen.workdir), "workdir")
    found = foresee(over)
    step, folder = found.training(), paths.make(chosen.workdir or "runs") / "aot"
    now = dataclasses.replace(step, mesh=chosen.mesh)
    asked = Asked(found, step, now, slices, hardware.device(slices), folder, options.save)
    check_batches(found.settings, step.mesh.shape(slices.devices))
    _check_attention(asked)
    if not options.estimate:
        cache.ready(folder)
    if options.save:
        programs.use_for_others(paths.make(chosen.compilation_cache), print)
    _introduce(asked)
    if options.table:
        print(format_table(table(found.student, step.mesh.shape(slices.devices), step.mesh.fallbacks)))
    if options.estimate:
        _estimate(asked)
        return
    report: dict[str, Any] = {"topology": str(slices), "chips": slices.chips}
    if options.step in ("train", "all"):
        if options.sweep or options.fit:
            report["sweep"] = _sweep(asked, options.fit)
        else:
            report["train"] = _training(asked)
    if options.step == "train":
        _say(_on_top(found, "; --step all compiles that too"))
    others: dict[str, Step] = {**found.before(), "score": found.scoring(), "evaluate": found.evaluation()}
    for name in (name for name in others if options.step in (name, "all")):
        print(f"\n{name}:", flush=True)
        report[name] = _other(asked, name, others[name])
    if options.save:
        print(f"compiled programs: {programs.tally()[1]} new in {chosen.compilation_cache}", flush=True)
    files.write_json(folder / REPORT, report)


def _over_slices(chosen: Settings, slices: Slices) -> Settings:
    """Settings whose copies go over the slices, unless they say otherwise.

    Raises:
        UserError: they say that they go over another number of slices.
    """
    mesh, kind = chosen.mesh, "box" if slices.gpus else "slice"
    if mesh.dcn_data * mesh.dcn_fsdp not in (1, slices.slices):
        raise UserError(f"topology {slices}: {other_slices(mesh, slices.slices, kind)}")
    if slices.slices == 1 or mesh.dcn_data * mesh.dcn_fsdp > 1:
        return chosen
    data = mesh.data if mesh.data == -1 or mesh.data % slices.slices == 0 else slices.slices
    kind = "boxes" if slices.gpus else "slices"
    print(f"mesh: {slices.slices} {kind}, so mesh.data = {data} copies go over them (mesh.dcn_data)")
    return dataclasses.replace(chosen, mesh=dataclasses.replace(mesh, data=data, dcn_data=slices.slices))


def _check_attention(asked: Asked) -> None:
    """Refuses a kernel that such devices do not have."""
    found, chosen = asked.found, asked.found.settings
    platform, dtype = "gpu" if asked.slices.gpus else "tpu", jnp.dtype(chosen.train.compute_dtype)
    for model in (found.source, found.student, found.teacher):
        refuse_unsupported(chosen.mesh.attention, platform, dtype, model.head_dim)


def _introduce(asked: Asked) -> None:
    found, step, slices = asked.found, asked.step, asked.slices
    shape = {name: size for name, size in step.mesh.shape(slices.devices).items() if size > 1}
    rows = f"{step.rows:,} rows of {step.length:,} tokens"
    if step.step.accumulate > 1:
        rows += f" in {step.step.accumulate} micro-batches"
    models = f"student {count(found.student):,} parameters"
    if step.teacher is not None:
        models += f", teacher {count(step.teacher):,}"
    if found.settings.rounds:
        models += " (the first round)"
    if found.left_out:
        models += f"; not counted: {', '.join(found.left_out)}"
    _say(
        [
            f"{slices}, {slices.chips:,} chips; {models}",
            f"a step: {rows}; {step.step.compute_dtype}, remat {step.step.remat}; "
            f"mesh {', '.join(f'{name}={size}' for name, size in shape.items()) or 'of one device'}",
        ]
    )


def _estimate(asked: Asked) -> None:
    """Prints what formulas say of the step."""
    estimate, expected = asked.estimate, asked.outlook(asked.step, None)
    memory = estimate.memory()
    _say(describe.foreseen(memory, estimate.wire(), asked.device))
    _say([*describe.work(expected, None), describe.whole_run(expected, *_steps(asked)), *_on_top(asked.found)])
    if sweep.ruled_out(memory.peak, asked.device):
        _say(_mend(asked, None, memory.peak))


def _steps(asked: Asked) -> tuple[int, str]:
    """How many steps are like the one that is looked at, and what they make up."""
    found = asked.found
    what = "the first round" if found.settings.rounds else "the run"
    return found.settings.train.steps, f"{what}'s own steps" if found.before() else what


def _on_top(found: Foreseen, more: str = "") -> list[str]:
    """Steps of other models that the run takes besides."""
    before = found.before()
    said = " and ".join(f"{one.step.steps:,} steps ({name})" for name, one in before.items())
    return [f"on top of these come {said}, which train another model{more}"] if before else []


def _training(asked: Asked) -> dict[str, Any]:
    """Compiles the step as it is configured."""
    step, device, estimate = asked.step, asked.device, asked.estimate.memory()
    _say([f"estimated: {estimate.peak / 1e9:.2f} GB a device; compiling takes minutes for billions of parameters"])
    costs = asked.costs(step)
    expected = asked.outlook(step, costs)
    _say([describe.fits(costs, device), *describe.taken(costs, device)])
    _say([*describe.memory(costs, estimate), *describe.traffic(costs)])
    _say([*describe.work(expected, costs), describe.whole_run(expected, *_steps(asked))])
    if costs.peak_bytes is None:
        _say(_mend(asked, costs.needed_bytes, estimate.peak))
    return _figures(costs, expected)


def _other(asked: Asked, name: str, step: Step) -> dict[str, Any]:
    """Compiles another step of the run."""
    costs, device = asked.costs(step), asked.device
    beside = asked.step.state_beside(topology.devices(asked.slices)) if name == "evaluate" else 0
    said = [describe.in_training(costs, beside, device)] if beside else []
    said += describe.taken(costs, device, beside)
    if not isinstance(step, TrainingStep):
        _say([describe.fits(costs, device), *said, *describe.memory(costs), *describe.traffic(costs)])
        return costs.to_json() | ({"beside_bytes": beside} if beside else {})
    expected, estimate = asked.outlook(step, costs), Estimate(step, asked.slices.devices).memory()
    _say([describe.fits(costs, device), *said, *describe.memory(costs, estimate), *describe.traffic(costs)])
    _say([*describe.work(expected, costs), describe.whole_run(expected, step.step.steps, name)])
    return _figures(costs, expected)


def _sweep(asked: Asked, until_fit: bool) -> list[dict[str, Any]]:
    """Compiles the most promising settings, the fastest first.

    With `until_fit` no more once one fits, but for what is configured, which a guess is not to displace.
    """
    step, now, slices, device = asked.step, asked.now, asked.slices, asked.device
    every = sweep.candidates(step, slices, device)
    filled = dataclasses.replace(step, mesh=step.mesh.filled(slices.devices))
    left = sweep.fitting(every, device)
    chosen = left if until_fit else sweep.worth_compiling(left, filled)
    if not chosen:
        least = min(every, key=lambda one: one.peak, default=None)
        said = f"; the least is {least.peak / 1e9:.1f} GB with {describe.settings(least.changed(now))}" if least else ""
        raise UserError(f"topology {slices}: no setting fits by estimate{said}; take more chips or larger ones")
    compiled: list[tuple[sweep.Candidate, Costs, Outlook]] = []
    while chosen and len(compiled) < sweep.COMPILES:
        one, *chosen = chosen
        which = f"{len(compiled) + 1} of up to {min(sweep.COMPILES, len(compiled) + 1 + len(chosen))}"
        print(f"compiling {which}: {describe.settings(one.changed(now))}", flush=True)
        costs = asked.costs(one.step)
        compiled.append((one, costs, asked.outlook(one.step, costs)))
        if until_fit and costs.peak_bytes is not None:
            chosen = [other for other in chosen if other.step == filled]
        elif until_fit:  # what is no smaller will not fit either
            chosen = [other for other in chosen if other.peak < one.peak]
    print(describe.table(every, compiled, now))
    peaks = [float(costs.peak_bytes or math.inf) for _, costs, _ in compiled]
    best, costs, expected = compiled[sweep.fastest(peaks, [expected.at_best for _, _, expected in compiled])]
    if costs.peak_bytes:
        _say([f"fastest that fits: {describe.settings(best.changed(now))}"])
        _say([describe.whole_run(expected, *_steps(asked))])
    else:
        print(f"none of these fits {slices}; take more chips or larger ones", flush=True)
    return [one.changes | _figures(costs, expected) for one, costs, expected in compiled]


def _mend(asked: Asked, needed: int | None, estimated: float) -> list[str]:
    """What would fit by estimate, nearest to what was asked for."""
    every = sweep.candidates(asked.step, asked.slices, asked.device)
    best = sweep.nearest(every, asked.step, asked.device, needed or 0, estimated)
    if best is None:
        return [f"no setting of this batch fits {asked.slices} by estimate; take more chips or larger ones"]
    said = describe.settings(best.changed(asked.now))
    return [f"would fit by estimate, {best.peak / 1e9:.2f} GB: {said}; --fit compiles such"]


def _figures(costs: Costs, expected: Outlook) -> dict[str, Any]:
    figures = {"at_best": expected.at_best, "step_seconds": expected.step_seconds}
    figures |= {"tokens_per_second": expected.tokens_per_second, "mfu": expected.mfu(expected.step_seconds)}
    return costs.to_json() | figures | {"flops": dataclasses.asdict(expected.flops)}


def _say(lines: list[str]) -> None:
    for line in lines:
        print(line, flush=True)
