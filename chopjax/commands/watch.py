"""What happens after training steps: lines of metrics, evaluations on held-out rows, checkpoints."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from chopjax import paths
from chopjax.commands import cache_teacher, programs
from chopjax.commands.phase import Phase
from chopjax.commands.run import Run
from chopjax.data.batches import Batches, one_pass
from chopjax.distill.objective import Metrics, of_model
from chopjax.errors import Preempted
from chopjax.evaluate.perplexity import Evaluation, evaluate_rows
from chopjax.models.block import Masks
from chopjax.models.config import ModelConfig
from chopjax.sharding.mesh import place_batch
from chopjax.sharding.processes import in_all
from chopjax.train import preemption
from chopjax.train.checkpoints import METRIC, Checkpoints
from chopjax.train.flops import StepFlops, step_flops
from chopjax.train.goodput import Goodput
from chopjax.train.heartbeat import Heartbeat
from chopjax.train.loop import due, to_host
from chopjax.train.metrics import MetricsWriter, Tracker, read
from chopjax.train.mfu import figures
from chopjax.train.progress import Progress
from chopjax.train.skipping import Steps
from chopjax.train.state import TrainState
from chopjax.train.trackers import TensorBoard, WeightsAndBiases


class Watch:
    """Logs, evaluates and saves during one phase, and stops it where it must; use it as a context manager.

    While it is entered, SIGTERM waits for the end of a step.

    Args:
        run: the run.
        phase: what is trained.
        checkpoints: where states go.
        batches: the data, whose position goes with them.
        teacher: the teacher's parameters, if there is one.
        done: steps of the run done before.
    """

    def __init__(
        self, run: Run, phase: Phase, checkpoints: Checkpoints, batches: Batches, teacher: Any, done: int
    ) -> None:
        self._run, self._phase, self._checkpoints, self._batches = run, phase, checkpoints, batches
        self._teacher, chosen = teacher, run.settings.train
        folder = run.workdir / phase.metrics
        trackers = _trackers(run, phase, done) if run.writer else ()
        self._metrics = MetricsWriter(folder, resumed_at=done, writer=run.writer, trackers=trackers)
        self._progress = Progress(phase.until, done, shown=run.writer)
        self._goodput = Goodput(folder, done, writer=run.writer)
        self._steps = Steps(done, self._goodput.restored.skipped, chosen.skip_limit)
        self._heartbeat = Heartbeat(
            run.workdir,
            done,
            process=jax.process_index(),
            processes=jax.process_count(),
            limit=chosen.hang_seconds,
            end=chosen.hang_ends,
        )
        self._unsaved, self._done = False, done
        # The first rate holds the compilation too; a person wants to see that something goes on.
        self._clock, self._clocked = time.monotonic(), done
        # Since when steps alone took time; the first step compiles.
        self._since: float | None = None
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> "Watch":
        self._exits.enter_context(preemption.held())
        for part in (self._heartbeat, self._progress, self._metrics, self._batches):
            self._exits.callback(part.close)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._exits.__exit__(*exception)

    def catch_up(self, state: TrainState) -> None:
        """Makes the evaluation of the step that the run goes on from, if a signal cut it off.

        Raises:
            Preempted: the processes were told to end again; nothing is lost.
        """
        step = self._done
        if not evaluation_missing(self._run, self._phase, step):
            return
        try:
            figures = self._heldout(state)
        except Preempted:  # at the same batch in all processes
            self._stop(step)
        self._metrics.amend(step, {"tokens": self._tokens(step)} | figures)
        self._metrics.settle()
        self._checkpoints.add_metrics(step, figures)

    def after(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Does what is due after a step. Its line is on disk before its checkpoint, so a resumed run finds it.

        Raises:
            Preempted: the processes were told to end; the step is saved.
            Diverged: too many steps in a row were skipped.
        """
        chosen, last = self._run.settings.train, self._phase.until
        self._follow(step, metrics)
        if self._since is None and (said := programs.told()):
            self._progress.say(said)
        if told := preemption.agreed():
            self._steps.settle()  # so that what is saved beside the step counts all that were skipped
        save = told or due(step, chosen.save_every, last)
        line: dict[str, Any] = {}
        if due(step, chosen.log_every, last):
            line |= self._figures(step, to_host(metrics))
        heldout_figures: dict[str, float] = {}
        # In this order: asking for the held-out rows opens their files.
        if not told and due(step, chosen.evaluate_every, last) and self._run.student_data.heldout():
            try:
                heldout_figures = self._heldout(state)
            except Preempted:  # at the same batch in all processes
                told = save = True
            line |= heldout_figures
        if line:
            line = {"tokens": self._tokens(step)} | line
            self._metrics.write(step, line)
            self._progress.update(step, line)
        if self._to_be_saved(save, told or step == last):
            self._goodput.save(step, self._steps.skipped)
            self._metrics.settle()
            self._checkpoints.save(step, state, self._batches.get_state(), heldout_figures)
            self._heartbeat.alive()
        if told:
            self._stop(step)
        self._since = time.monotonic()

    def _follow(self, step: int, metrics: Metrics) -> None:
        """Waits for the devices, all of them where something else than a step follows, and takes the time."""
        chosen, last = self._run.settings.train, self._phase.until
        self._heartbeat.begun(step)
        self._steps.begin(step, metrics["skipped"])
        every = (chosen.log_every, chosen.evaluate_every, chosen.save_every)
        if self._unsaved or any(due(step, often, last) for often in every):
            self._steps.settle()
        self._heartbeat.ended(self._steps.ended)
        if self._since is not None:
            self._goodput.spent(time.monotonic() - self._since)

    def _to_be_saved(self, wanted: bool, needed: bool) -> bool:
        """Whether to save now; a save that falls on skipped steps waits for the first that is not."""
        self._unsaved = self._unsaved or wanted
        if not self._unsaved or (self._steps.in_a_row and not needed):
            return False
        self._unsaved = False
        return True

    def _stop(self, step: int) -> NoReturn:
        self._checkpoints.wait()
        said = f"train: told to end (SIGTERM); step {step} of {self._phase.until} is saved, the same command goes on"
        raise Preempted(said if self._run.writer else "")

    def _tokens(self, steps: int) -> int:
        return steps * self._run.settings.train.batch * self._run.student_data.length

    def _figures(self, step: int, values: dict[str, float]) -> dict[str, Any]:
        now = time.monotonic()
        rate = self._tokens(step - self._clocked) / (now - self._clock)
        self._clock, self._clocked = now, step
        values.pop("tokens")
        arithmetic = figures(token_flops(self._run, self._phase), rate, jax.devices())
        counted = {"skipped": self._steps.skipped, "goodput": self._goodput.share}
        return values | counted | {"tokens_per_second": rate} | arithmetic

    def _heldout(self, state: TrainState) -> dict[str, float]:
        began = time.monotonic()
        params, masks = state.params, None
        if self._phase.dimchop is not None:
            params, masks = self._phase.dimchop.apply(params, state.opt_state)
        teacher = self._teacher
        if state.teacher is not None:
            teacher = jax.tree.map(lambda p: p.astype(self._run.compute_dtype), state.teacher.params)
        cached = self._phase.teacher == "cached"
        config, alive = self._phase.config, self._heartbeat.alive
        found = heldout(self._run, config, of_model(params), teacher, masks, cached=cached, alive=alive)
        self._clock += time.monotonic() - began
        self._heartbeat.alive()
        figures = {METRIC: found.nll, "heldout_perplexity": found.perplexity}
        return figures if found.kl is None else figures | {"heldout_kl": found.kl}


def evaluation_missing(run: Run, phase: Phase, step: int) -> bool:
    """Whether a checkpoint's step was to be evaluated and has no figures; the same in all processes."""
    if not step or not due(step, run.settings.train.evaluate_every, phase.until):
        return False
    lines = read(run.workdir / phase.metrics / "metrics.jsonl") if run.writer else []
    there = not run.writer or any(line["step"] == step and METRIC in line for line in lines)
    # In this order: asking for the held-out rows opens their files.
    return not in_all(there) and bool(run.student_data.heldout())


def token_flops(run: Run, phase: Phase) -> StepFlops:
    """FLOPs that training on one token takes; what is made again in the backward pass not counted."""
    teacher = run.teacher_config if phase.teacher in ("beside", "learning") else None
    return step_flops(phase.config, teacher, 1, run.student_data.length, learning=phase.teacher == "learning")


def heldout(
    run: Run,
    config: ModelConfig,
    params: dict[str, Any],
    teacher: Any = None,
    masks: Masks | None = None,
    cached: bool = False,
    alive: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Perplexity on the held-out rows, and KL to the teacher where there is one; masks are of `params` alone.

    With `cached`, the KL is to what was kept of the teacher's distributions, at the temperature of the cache.
    `alive` is called before each batch.

    Raises:
        Preempted: the processes were told to end; at the same batch in all of them.
    """
    chosen = run.settings.evaluate
    params = jax.tree.map(lambda p: p.astype(run.compute_dtype), params)
    share = {"process_index": run.share.index, "process_count": run.share.count}
    rows = cache_teacher.heldout(run) if cached else run.student_data.heldout()
    run.say_once("evaluate.rows", lambda: shortage(chosen.rows, sum(map(len, rows.values()))))
    batches = one_pass(list(rows.values()), chosen.batch, limit=chosen.rows, **share)

    def placed() -> Iterator[dict[str, Any]]:
        for batch in batches:
            run.boundary()
            alive()
            yield place_batch(run.mesh, batch)

    return evaluate_rows(
        config,
        params,
        placed(),
        masks=masks,
        teacher=(run.teacher_config, teacher) if teacher is not None else None,
        temperature=run.settings.loss.temperature if cached else 1.0,
        chunk=run.settings.loss.chunk,
        vocab_tokens=run.student_tokenizer.vocab,
        constrain=run.constrain,
    )


def _trackers(run: Run, phase: Phase, done: int) -> list[Tracker]:
    chosen = run.settings.train
    # Event files grow, which files in a store cannot; metrics.jsonl has the same figures.
    board = chosen.tensorboard and not paths.is_remote(run.workdir)
    trackers: list[Tracker] = [TensorBoard(run.workdir / phase.metrics, done)] if board else []
    if chosen.wandb:
        # Under the workdir's name: a teacher's folder has the same name in every run.
        trackers.append(WeightsAndBiases(chosen.wandb, run.workdir, run.settings.dotted(), phase.metrics))
    return trackers


def shortage(asked: int, there: int) -> list[str]:
    """A line where fewer held-out rows are there than `evaluate.rows` asks for."""
    return [f"evaluate.rows: there are only {there} held-out rows; all are read instead of {asked}"] * (there < asked)
