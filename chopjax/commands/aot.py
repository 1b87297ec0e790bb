"""The truth about a run before chips are rented for it: its steps, compiled for devices that need not be there."""

import argparse
import dataclasses
import os
import pathlib
from typing import Any

# Before jax is imported: what is here is no part of the answer, and a TPU's library would look for chips.
os.environ["JAX_PLATFORMS"] = "cpu"

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
from chopjax.sharding.table import format_table, table  # noqa: E402

REPORT = "aot.json"


def main(chosen: Settings, options: argparse.Namespace) -> None:
    """Prints what a run takes on some topology; the figures also go to `WORKDIR/aot/aot.json`.

    Raises:
        UserError: models, mesh or topology that do not go together; no compiler for the topology.
    """
    slices = topology.parse(options.topology)
    if (options.sweep or options.fit) and options.step not in ("train", "all"):
        raise UserError(f"--step {options.step}: --sweep and --fit are of the training step; leave one of them out")
    if options.save and (options.sweep or options.fit or not chosen.compilation_cache):
        raise UserError(
            "--save keeps a run's own steps in compilation_cache; name a folder there, and no --sweep or --fit"
        )
    chosen = _over_slices(chosen, slices)
    paths.reach(paths.make(chosen.workdir), "workdir")
    found, device = foresee(chosen), hardware.device(slices)
    step = found.training()
    check_batches(found.settings, step.mesh.shape(slices.devices))
    folder = paths.make(chosen.workdir or "runs") / "aot"
    if options.save:
        programs.use_for_others(paths.make(chosen.compilation_cache), print)
    _introduce(found, step, slices)
    if options.table:
        print(format_table(table(found.student, step.mesh.shape(slices.devices), step.mesh.fallbacks)))
    report: dict[str, Any] = {"topology": str(slices), "chips": slices.chips}
    if options.step in ("train", "all"):
        if options.sweep or options.fit:
            report["sweep"] = _sweep(found, step, slices, device, folder, options.fit)
        else:
            report["train"] = _training(found, step, slices, device, folder, options.save)
    others: dict[str, Step] = {**found.before(), "score": found.scoring(), "evaluate": found.evaluation()}
    if options.step == "train" and found.before():
        print(f"besides, {' and '.join(found.before())} trains another model: --step all compiles that too", flush=True)
    for name in (name for name in others if options.step in (name, "all")):
        print(f"\n{name}:", flush=True)
        costs = cache.costs(others[name], slices, folder, anew=options.save)
        beside = step.state_beside(topology.devices(slices)) if name == "evaluate" else 0
        said = [describe.in_training(costs, beside, device)] if beside else []
        said += describe.taken(costs, device, beside)
        _say([describe.fits(costs, device), *said, *describe.memory(costs), *describe.traffic(costs)])
        report[name] = costs.to_json() | ({"beside_bytes": beside} if beside else {})
    if options.save:
        print(f"compiled programs: {programs.tally()[1]} new in {chosen.compilation_cache}", flush=True)
    files.write_json(folder / REPORT, report)


def _over_slices(chosen: Settings, slices: Slices) -> Settings:
    """Settings whose copies go over the slices, unless they say otherwise."""
    mesh = chosen.mesh
    if slices.slices == 1 or mesh.dcn_data * mesh.dcn_fsdp > 1:
        return chosen
    data = mesh.data if mesh.data == -1 or mesh.data % slices.slices == 0 else slices.slices
    kind = "boxes" if slices.gpus else "slices"
    print(f"mesh: {slices.slices} {kind}, so mesh.data = {data} copies go over them (mesh.dcn_data)")
    return dataclasses.replace(chosen, mesh=dataclasses.replace(mesh, data=data, dcn_data=slices.slices))


def _introduce(found: Foreseen, step: TrainingStep, slices: Slices) -> None:
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


def _training(
    found: Foreseen, step: TrainingStep, slices: Slices, device: Device, folder: pathlib.Path, save: bool
) -> dict[str, Any]:
    """Compiles the step as it is configured."""
    estimate = Estimate(step, slices.devices).memory()
    _say([f"estimated: {estimate.peak / 1e9:.2f} GB a device; compiling takes minutes for billions of parameters"])
    costs = cache.costs(step, slices, folder, anew=save)
    expected = outlook(step, slices, costs)
    _say([describe.fits(costs, device), *describe.taken(costs, device)])
    _say([*describe.memory(costs, estimate), *describe.traffic(costs)])
    _say([*describe.work(expected, costs), describe.whole_run(expected, step.step.steps)])
    if costs.peak_bytes is None:
        _say(_mend(step, slices, device))
    return _figures(costs, expected)


def _sweep(
    found: Foreseen, step: TrainingStep, slices: Slices, device: Device, folder: pathlib.Path, until_fit: bool
) -> list[dict[str, Any]]:
    """Compiles the most promising settings, the fastest first; with `until_fit` no more once one fits."""
    every = sweep.candidates(step, slices, device)
    filled = dataclasses.replace(step, mesh=step.mesh.filled(slices.devices))
    left = sweep.fitting(every, device)
    chosen = left if until_fit else sweep.worth_compiling(left, filled)
    if not chosen:
        least = min(every, key=lambda one: one.peak, default=None)
        said = f"; the least is {least.peak / 1e9:.1f} GB with {describe.settings(least.changes)}" if least else ""
        raise UserError(f"topology {slices}: no setting fits by estimate{said}; take more chips or larger ones")
    compiled: list[tuple[sweep.Candidate, Costs, Outlook]] = []
    while chosen and len(compiled) < sweep.COMPILES:
        one, *chosen = chosen
        print(f"compiling {len(compiled) + 1} of up to {sweep.COMPILES}: {describe.settings(one.changes)}", flush=True)
        costs = cache.costs(one.step, slices, folder)
        compiled.append((one, costs, outlook(one.step, slices, costs)))
        if until_fit and costs.peak_bytes is not None:
            break
        if until_fit:  # what is no smaller will not fit either
            chosen = [other for other in chosen if other.peak < one.peak]
    now = sweep.Candidate(filled, 0, 0).changes
    print(describe.table(every, compiled, now))
    those = [(expected.at_best, one, expected) for one, costs, expected in compiled if costs.peak_bytes]
    if those:
        _, best, expected = min(those, key=lambda one: one[0])
        _say([f"fastest that fits: {describe.settings(best.changes)}", describe.whole_run(expected, step.step.steps)])
    else:
        print(f"none of these fits {slices}; take more chips or larger ones", flush=True)
    return [one.changes | _figures(costs, expected) for one, costs, expected in compiled]


def _mend(step: TrainingStep, slices: Slices, device: Device) -> list[str]:
    """What would fit by estimate, nearest to what was asked for."""
    every = sweep.candidates(step, slices, device)
    there = [one for one in every if one.peak <= sweep.USABLE * device.memory]
    if not there:
        return [f"no setting of this batch fits {slices} by estimate; take more chips or larger ones"]
    same = [one for one in there if one.step.mesh == step.mesh.filled(slices.devices)]
    best = (same or there)[0]
    return [f"would fit by estimate, {best.peak / 1e9:.2f} GB: {describe.settings(best.changes)}; --fit compiles such"]


def _figures(costs: Costs, expected: Outlook) -> dict[str, Any]:
    figures = {"at_best": expected.at_best, "step_seconds": expected.step_seconds}
    figures |= {"tokens_per_second": expected.tokens_per_second, "mfu": expected.mfu(expected.step_seconds)}
    return costs.to_json() | figures | {"flops": dataclasses.asdict(expected.flops)}


def _say(lines: list[str]) -> None:
    print("\n".join(lines), flush=True)
