"""Teacher, chopped and healed model side by side: perplexity, divergence, and what they say."""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from chopjax import files, records
from chopjax.commands import score
from chopjax.commands.ends import end_tokens
from chopjax.commands.run import Run, begin
from chopjax.commands.settings import Settings
from chopjax.commands.stages import Stage
from chopjax.commands.watch import heldout
from chopjax.data.batches import has_targets
from chopjax.data.rows import stack_rows
from chopjax.data.tokenize import Tokenizer
from chopjax.errors import UserError
from chopjax.evaluate.choices import choice_accuracy, load_items
from chopjax.evaluate.generate import generate
from chopjax.evaluate.perplexity import Evaluation, rolling_perplexity
from chopjax.hf.checkpoint import Checkpoint, open_checkpoint
from chopjax.models.config import ModelConfig
from chopjax.report.words import significant

EVALUATION, SAMPLES = "evaluation.json", "samples.json"
NEWEST = 1  # format
TITLES = {"perplexity": "perplexity", "rolling_perplexity": "by rolling windows", "kl": "KL to the teacher"}
STAGE = Stage("evaluate", (EVALUATION, SAMPLES))


def main(chosen: Settings) -> None:
    """Evaluates the models of a run and prints the figures."""
    run = begin(chosen, check)
    make(run)
    for name, figures in read(run).items():
        said = [f"{TITLES[key]} {significant(figures[key])}" for key in TITLES if figures.get(key) is not None]
        run.say(f"evaluate: {name}: {', '.join(said) or 'nothing finite'} on {figures['tokens']:,} tokens")
        for file, scores in figures.get("choices", {}).items():
            both = f"{scores['accuracy']:.1%}, by length {scores['accuracy_norm']:.1%}"
            run.say(f"evaluate: {name}: accuracy on {file} {both}, of {scores['items']} questions")


def make(run: Run) -> None:
    """Writes `evaluation.json` and `samples.json`, from the folders that a user would load.

    Raises:
        UserError: nothing was exported yet.
    """
    questions = {file: files.fingerprint(file) for file in run.settings.evaluate.choices}
    inputs = (
        run.settings.dotted("evaluate")
        | questions
        | {"export": run.stages.digest("export"), "teacher": run.teacher_print}
    )
    run.stage(STAGE, inputs, functools.partial(_work, run))


def read(run: Run) -> dict[str, dict[str, Any]]:
    """Figures by model: `nll`, `perplexity`, `kl` and `tokens`; `rolling_perplexity` where a window is set.

    None stands for what was not measured, or is not finite.

    Raises:
        UserError: the file is damaged.
    """
    file, fix = run.workdir / EVALUATION, "remove the file and run python -m chopjax.evaluate again"
    found = records.read_object(file, fix)
    if found is None:
        raise UserError(f"{file} is gone; run python -m chopjax.evaluate again")
    records.check_format(found, NEWEST, str(file), fix)
    records.shaped(found, _Evaluations, str(file), fix, extra=True)
    return found


@dataclasses.dataclass(frozen=True)
class _Accuracy:
    accuracy: records.NotNegative
    accuracy_norm: records.NotNegative
    items: records.Count


@dataclasses.dataclass(frozen=True)
class _Figures:
    nll: float | None
    perplexity: float | None
    tokens: records.Count
    kl: float | None = None
    rolling_perplexity: float | None = None
    choices: Mapping[str, _Accuracy] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Evaluations:
    """What `evaluation.json` holds."""

    teacher: _Figures
    chopped: _Figures
    healed: _Figures


def _work(run: Run) -> None:
    if not run.student_data.heldout():
        raise UserError("data.heldout_fraction is 0 and no source is held out; hold some text out to evaluate on")
    teacher = run.load_teacher()
    evaluations: dict[str, dict[str, Any]] = {}
    samples = [{"prompt": prompt} for prompt in run.settings.evaluate.prompts]
    for name, checkpoint in _models(run).items():
        evaluations[name], written = _evaluated(run, name, checkpoint, teacher)
        for sample, text in zip(samples, written, strict=True):
            sample[name] = text
    if run.writer:
        finite = {name: {key: _finite(value) for key, value in found.items()} for name, found in evaluations.items()}
        files.write_json(run.workdir / EVALUATION, finite)
        files.write_json(run.workdir / SAMPLES, samples)


def _evaluated(
    run: Run, name: str, checkpoint: Checkpoint, teacher: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """A model's figures, and what it says; its parameters are gone before the next one's are read."""
    own = checkpoint is run.teacher
    config, params = (run.teacher_config, teacher) if own else (checkpoint.config, run.load(checkpoint))
    found = heldout(run, config, params, None if own else teacher)
    if not math.isfinite(found.nll):
        raise UserError(f"evaluate: the loss of the {name} model is {found.nll}; its weights are broken")
    figures = dataclasses.asdict(found)
    if run.settings.evaluate.window:
        figures["rolling_perplexity"] = _rolling(run, config, params).perplexity
    return figures | {"choices": _accuracies(run, config, params)}, texts(run, config, params)


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and infinities, which a broken model gives."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _models(run: Run) -> dict[str, Checkpoint]:
    return {"teacher": run.teacher, "chopped": run.student, "healed": open_checkpoint(run.export_folder)}


def _accuracies(run: Run, config: ModelConfig, params: dict[str, Any]) -> dict[str, dict[str, float]]:
    """For each file of questions, by its name, `accuracy`, `accuracy_norm` and the number of `items`."""
    batch, length = run.settings.evaluate.batch, run.student_data.length
    options = score.loss_options(run) | {"vocab_tokens": run.student_tokenizer.vocab}
    found = {}
    for file in run.settings.evaluate.choices:
        items = load_items(file)
        scores = choice_accuracy(config, params, run.student_tokenizer, items, batch, length, **options)
        found[pathlib.Path(file).stem] = dataclasses.asdict(scores)
    return found


def _rolling(run: Run, config: ModelConfig, params: dict[str, Any]) -> Evaluation:
    """Perplexity of the held-out text as one stream, each token with at least a window less a stride of context."""
    chosen = run.settings.evaluate
    every = (rows[index] for rows in run.student_data.heldout().values() for index in range(len(rows)))
    rows = itertools.islice(every, chosen.rows or None)
    chats = has_targets(run.student_data.heldout().values())
    batch = stack_rows(list(rows), chats)
    there = batch["segment_ids"] > 0
    return rolling_perplexity(
        config,
        params,
        batch["tokens"][there],
        chosen.window,
        chosen.stride or -(-chosen.window // 2),
        chosen.batch,
        targets=batch["targets"][there] if chats else None,
        chunk=run.settings.loss.chunk,
        vocab_tokens=run.student_tokenizer.vocab,
        constrain=run.constrain,
    )


def check(run: Run) -> None:
    """Refuses, before anything slow, prompts and a window that the models could not take.

    Raises:
        UserError: an empty prompt, or a window beyond the models' positions.
    """
    for index, ids in enumerate(_prompts(run, run.tokenizer)):
        if not ids:
            raise UserError(f"evaluate.prompts[{index}] is empty; give some text, or leave it out")
    names = [pathlib.Path(file).stem for file in run.settings.evaluate.choices]
    if twice := [name for index, name in enumerate(names) if name in names[:index]]:
        raise UserError(f"evaluate.choices: two files are called {twice[0]}, and results go by name; rename one")
    for file in run.settings.evaluate.choices:
        load_items(file)
    window = run.settings.evaluate.window
    for model in (run.source.config, run.teacher.config):
        if window > model.positions and model.rope.kind != "dynamic":
            raise UserError(f"evaluate.window is {window}, but the model has only {model.positions} positions")


def _prompts(run: Run, tokenizer: Tokenizer) -> list[list[int]]:
    before = [] if not tokenizer.adds_bos or tokenizer.bos is None else [tokenizer.bos]
    return [before + ids for ids in tokenizer.encode(run.settings.evaluate.prompts)]


def texts(run: Run, config: ModelConfig, params: dict[str, Any]) -> list[str]:
    """What a model adds to each of `evaluate.prompts`, up to the first token that ends a text."""
    chosen, tokenizer = run.settings.evaluate, run.student_tokenizer
    prompts = _prompts(run, tokenizer)
    ends = end_tokens(run)
    key = jax.random.key(run.settings.seed)
    said = generate(config, params, prompts, chosen.new_tokens, chosen.temperature, key, ends)
    return [tokenizer.decode([token for token in tokens if token not in ends]) for tokens in said]
