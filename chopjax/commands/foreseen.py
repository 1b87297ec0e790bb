"""What a run will compute, from its settings and the shapes of its models alone: no weights, no text, no devices."""

import dataclasses

from chopjax import paths
from chopjax.aot.steps import EvaluationStep, ScoringStep, TrainingStep
from chopjax.chop.apply import chop_config
from chopjax.chop.build import build_plan
from chopjax.chop.plan import Plan, check_source
from chopjax.commands import evidence, heal, rounds, training
from chopjax.commands.run import PLAN, read_plan
from chopjax.commands.settings import Settings
from chopjax.data.tokenize import load_tokenizer
from chopjax.distill.config import LossConfig
from chopjax.distill.matching import match
from chopjax.errors import UserError
from chopjax.hf.checkpoint import open_config
from chopjax.hf.families import target_family
from chopjax.hf.trimmed import has_tokenizer
from chopjax.models.config import ModelConfig
from chopjax.train.step import StepConfig


@dataclasses.dataclass(frozen=True)
class Foreseen:
    """The models of a run by their shapes.

    Attributes:
        settings: of the run; of its first round, where it has several.
        source: the model that is made smaller.
        student: what it becomes.
        teacher: what the student learns from.
        plan: sizes as they will be; which units stay may be others.
        vocab_tokens: tokens of the tokenizer; None where none lies beside the config.
    """

    settings: Settings
    source: ModelConfig
    student: ModelConfig
    teacher: ModelConfig
    plan: Plan
    vocab_tokens: int | None

    def training(self) -> TrainingStep:
        """The step of the training after the chop.

        Raises:
            UserError: activations that cannot be compared.
        """
        chosen, place = self.settings, heal.teacher_place(self.settings)
        beside = place in ("beside", "learning")
        steps = chosen.train.steps_before_chop + chosen.train.steps
        matching = None
        if chosen.hidden.terms:
            kept = self.plan.kept if chosen.teacher in ("", chosen.source) else None
            matching = match(chosen.hidden, self.student, self.teacher, kept)
        schedule = dataclasses.replace(chosen.optimizer.schedule, steps=steps)
        train = chosen.train
        return TrainingStep(
            self.student,
            train.batch,
            chosen.data.length,
            chosen.loss,
            self.teacher if beside else None,
            StepConfig(train.accumulate, train.compute_dtype, train.remat, steps, place == "cached"),
            dataclasses.replace(chosen.optimizer, schedule=schedule),
            chosen.mesh,
            self.vocab_tokens,
            matching=matching,
            teacher_optimizer=training.correction_optimizer(chosen, train.steps) if place == "learning" else None,
            kept=chosen.cache.count,
        )

    def before(self) -> dict[str, TrainingStep]:
        """The steps of what is trained before the student: the whole source, and a teacher that is corrected first."""
        chosen, found = self.settings, {}
        if chosen.train.steps_before_chop:
            found["before the chop"] = self._plain(self.source, chosen.train.steps_before_chop)
        if chosen.correction.mode == "before":
            found["teacher correction"] = self._plain(self.teacher, chosen.correction.steps)
        return found

    @property
    def left_out(self) -> list[str]:
        """What a run would hold besides, and the step that is compiled here does not."""
        chosen, found = self.settings, []
        if chosen.dimchop.mode != "off":
            found.append("DimCHOP's masks and scores (dimchop.mode)")
        if chosen.on_policy.share:
            found.append("the sampler's cache of keys and values (on_policy.share)")
        return found

    def _plain(self, model: ModelConfig, steps: int) -> TrainingStep:
        chosen = self.settings
        train = chosen.train
        how = StepConfig(train.accumulate, train.compute_dtype, train.remat, steps)
        loss = LossConfig.plain(chosen.loss.chunk)
        rows, length = train.batch, chosen.data.length
        return TrainingStep(model, rows, length, loss, None, how, chosen.optimizer, chosen.mesh, self.vocab_tokens)

    def scoring(self) -> ScoringStep:
        """The pass over calibration rows."""
        chosen = self.settings
        return ScoringStep(self.source, chosen.score.batch, chosen.data.length, chosen.train.compute_dtype, chosen.mesh)

    def evaluation(self) -> EvaluationStep:
        """The pass over held-out rows."""
        chosen = self.settings
        return EvaluationStep(
            self.student,
            chosen.evaluate.batch,
            chosen.data.length,
            None if heal.teacher_place(chosen) == "none" else self.teacher,
            chosen.loss.chunk,
            chosen.train.compute_dtype,
            chosen.mesh,
            self.vocab_tokens,
        )


def foresee(chosen: Settings) -> Foreseen:
    """Reads the configs that the settings name, downloading them if need be, and sizes the student.

    Raises:
        UserError: a model that is not there or not supported; sizes that a search has yet to choose; a plan of another
            model, or one that stock transformers could not load.
    """
    if chosen.rounds:
        chosen = rounds.each(chosen, "float32")[0]
    folder, _, family, source = open_config(chosen.source)
    plan = _plan(chosen, source)
    student = chop_config(source, plan)
    target_family(family, student)
    teacher = source
    if chosen.teacher not in ("", chosen.source):
        teacher = open_config(chosen.teacher)[3]
    words = load_tokenizer(folder).vocab if has_tokenizer(folder) else None
    if words is not None and student.vocab < words:  # the teacher is cut to the student's words
        words, teacher = student.vocab, dataclasses.replace(teacher, vocab=student.vocab)
    return Foreseen(chosen, source, student, teacher, plan, words)


def _plan(chosen: Settings, source: ModelConfig) -> Plan:
    """The plan of the workdir or of the settings; else one of the same sizes."""
    file = paths.make(chosen.plan.file) if chosen.plan.file else paths.make(chosen.workdir) / PLAN
    if chosen.plan.file or (chosen.workdir and file.exists()):
        plan = read_plan(file, "plan.file" if chosen.plan.file else "workdir")
        check_source(plan, source.sizes)
        print(f"sizes are those of {file}", flush=True)
        return plan
    if chosen.search.wanted:
        raise UserError(
            "search: sizes are not chosen yet; run python -m chopjax.plan with this config first, or set plan.*"
        )
    return build_plan(chosen.plan, source.sizes, evidence.zeros(source.sizes, chosen.plan))
