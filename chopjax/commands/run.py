"""One run: its settings, its workdir, and what several commands open of both, each opened once and when needed."""

import dataclasses
import fcntl
import functools
import os
import pathlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from chopjax import paths
from chopjax.axes import flatten, unflatten
from chopjax.chop.apply import chop_config, gather
from chopjax.chop.plan import Plan
from chopjax.commands import programs, settings
from chopjax.commands.settings import Settings
from chopjax.commands.spread import check_batches
from chopjax.commands.stages import Stage, Stages
from chopjax.data.checks import check_tokenizers, first_difference
from chopjax.data.config import DataConfig
from chopjax.data.manifest import Manifest
from chopjax.data.prepare import prepare_or_open
from chopjax.data.tokenize import Tokenizer, load_tokenizer
from chopjax.errors import Preempted, UserError
from chopjax.hf.checkpoint import Checkpoint, open_checkpoint
from chopjax.hf.reading import load_params
from chopjax.hf.trimmed import has_tokenizer, shared_words
from chopjax.hf.vocabulary import trims
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import declare
from chopjax.sharding import rules
from chopjax.sharding.attention import platform_of, refuse_unsupported
from chopjax.sharding.mesh import Constrain, join_processes, make_mesh, param_shardings
from chopjax.sharding.rows import Share, share_of
from chopjax.train import preemption

PLAN, STUDENT, STUDENT_ROWS, EXPORT = "plan.json", "student", "student_rows", "export"
# The scores that DimCHOP ends with when it is pooled, by axis.
DIMCHOP = "dimchop.safetensors"


class Run:
    """What a command works on. Making one opens and writes nothing."""

    def __init__(self, chosen: Settings) -> None:
        self.settings = chosen
        _refuse_schemes(chosen)
        join_processes(chosen.mesh)
        if chosen.train.compute_dtype == "float32" and jax.default_backend() != "cpu":
            # Accelerators would make such products of TF32 or bfloat16 parts, which nobody asked for.
            jax.config.update("jax_default_matmul_precision", "highest")
        self.workdir = paths.make(chosen.workdir)
        self.writer = jax.process_index() == 0
        self._said: set[Hashable] = set()
        self.stages = Stages(self.workdir, writer=self.writer, barrier=self.barrier, defaults=settings.defaults())

    def begin(self) -> None:
        """Makes the workdir this process's own, and writes the resolved config to it.

        Raises:
            UserError: it cannot be made, another process works in it, it holds files of something else, or other hosts
                do not see it; or the folder of compiled programs cannot be used.
        """
        paths.reach(self.workdir, "workdir")
        if self.writer:
            if not paths.is_remote(self.workdir):
                _hold(self.workdir.absolute())
            _refuse_foreign(self.workdir)
            settings.write(self.settings)
        self.barrier()
        if not (self.workdir / "config.json").exists():
            raise UserError(f"workdir: {self.workdir} is not on storage that all hosts share; name a folder that is")
        if chosen := self.settings.compilation_cache:
            programs.use(paths.make(chosen), self.say, self.writer)

    def say(self, line: str) -> None:
        """Prints a line, once for all processes."""
        if self.writer:
            print(line, flush=True)

    def say_once(self, about: Hashable, lines: Callable[[], Iterable[str]]) -> None:
        """Prints lines on a matter that comes up again and again, the first time; they are not made after that."""
        if about not in self._said:
            self._said.add(about)
            for line in lines():
                self.say(line)

    def barrier(self) -> None:
        """Waits until all processes have come here."""
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("chopjax")

    def stage(self, stage: Stage, inputs: Mapping[str, Any], work: Callable[[], None]) -> None:
        """Runs a stage of the workdir unless it is done; see `Stages.run`.

        Raises:
            Preempted: the processes were told to end, before it or meanwhile.
        """
        try:
            self.boundary()
            self.stages.run(stage, inputs, work)
        except Preempted as stop:
            if stop.said is not None:
                raise
            how = "goes on" if stage.resumable else "starts it again"
            said = f"{stage.name}: told to end (SIGTERM); the same command {how}"
            raise Preempted(said if self.writer else "") from None

    def boundary(self) -> None:
        """Ends here if the processes were told to; all of them call it at the same places.

        Raises:
            Preempted: they were.
        """
        if preemption.agreed():
            raise Preempted

    @functools.cached_property
    def source(self) -> Checkpoint:
        """The checkpoint that is made smaller."""
        return open_checkpoint(self.settings.source)

    @functools.cached_property
    def teacher(self) -> Checkpoint:
        """The teacher: the source itself unless another is named.

        Raises:
            UserError: its tokenizer is neither the source's, nor the source's with further tokens.
        """
        if self.settings.teacher in ("", self.settings.source):
            return self.source
        teacher = open_checkpoint(self.settings.teacher)
        its, ours = load_tokenizer(teacher.folder), self.tokenizer
        if its.digest != ours.digest and shared_words(teacher.folder, self.source.folder) is None:
            check_tokenizers(its.digest, ours.digest, difference=first_difference(its, ours))
        return teacher

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The source's tokenizer."""
        with self.source.unchanged():
            return load_tokenizer(self.source.folder)

    @functools.cached_property
    def tokens(self) -> int:
        """One more than the highest id of the source's tokenizer; 0 for a source without one, which needs no text."""
        return self.tokenizer.vocab if has_tokenizer(self.source.folder) else 0

    @functools.cached_property
    def trimmed(self) -> bool:
        """Whether tokens of the source's tokenizer go; known from the settings, before there is a plan."""
        chosen = self.settings.plan
        if chosen.file:
            return trims(read_plan(chosen.file).kept.get("vocab"), self.tokens)
        return 0 < chosen.vocab < self.tokens

    @property
    def length(self) -> int:
        """Tokens in a sequence, without preparing any text for it."""
        return (
            self.settings.data.length if self.settings.data.sources or not self.settings.data.rows else self.data.length
        )

    @functools.cached_property
    def student_tokenizer(self) -> Tokenizer:
        """The student's tokenizer, which is the source's unless its vocabulary is trimmed."""
        return load_tokenizer(self.student.folder) if self.trimmed else self.tokenizer

    @functools.cached_property
    def _teacher_cut(self) -> Plan:
        """The teacher with the student's words alone, so that ids mean the same and a softmax is over the same words.

        What is left of a distribution after the cut is that distribution, renormalised over the words that stay.
        """
        words = None if self.teacher is self.source else shared_words(self.teacher.folder, self.source.folder)
        if self.trimmed:
            kept = self.plan.kept["vocab"]
            kept = kept[kept < self.tokenizer.vocab]
            words = kept if words is None else words[kept]
        return Plan(dict(self.teacher.config.sizes), {} if words is None else {"vocab": words})

    @functools.cached_property
    def teacher_config(self) -> ModelConfig:
        """The teacher as the student sees it, with the student's words alone; see `load_teacher`."""
        return chop_config(self.teacher.config, self._teacher_cut)

    @functools.cached_property
    def plan(self) -> Plan:
        """The plan that this run follows."""
        return Plan.from_json((self.workdir / PLAN).read_bytes())

    @functools.cached_property
    def student(self) -> Checkpoint:
        """The chopped model, not yet healed."""
        return open_checkpoint(self.workdir / STUDENT)

    @property
    def export_folder(self) -> pathlib.Path:
        """Where the healed model goes."""
        chosen = self.settings.export.folder
        return paths.make(chosen) if chosen else self.workdir / EXPORT

    @functools.cached_property
    def data(self) -> Manifest:
        """The rows in the source's tokens, prepared now if they are not there yet by process 0 alone."""
        return self._prepared(self.source, self.settings.data, "rows")

    @functools.cached_property
    def student_data(self) -> Manifest:
        """The rows that the student learns and is judged on: the same documents, in its own tokens if it has such."""
        if not self.trimmed:
            return self.data
        return self._prepared(self.student, dataclasses.replace(self.settings.data, rows=""), STUDENT_ROWS)

    def _prepared(self, model: Checkpoint, chosen: DataConfig, name: str) -> Manifest:
        if not self.writer:
            self.barrier()
        config, folder = model.config, self.workdir / name
        manifest = prepare_or_open(
            chosen, model.folder, folder, positions=config.positions, vocab=config.vocab, say=self.say
        )
        if self.writer:
            self.barrier()
        return manifest

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The mesh over all devices.

        Raises:
            UserError: its sizes do not make up the devices, or batches cannot be spread over it.
        """
        mesh = make_mesh(self.settings.mesh)
        check_batches(self.settings, mesh.shape)
        return mesh

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Axes that may lie otherwise than by the rules."""
        return self.settings.mesh.fallbacks

    @functools.cached_property
    def constrain(self) -> Constrain:
        """Pins activations to the mesh."""
        return Constrain(self.mesh, self.fallbacks, self.settings.mesh.attention)

    @functools.cached_property
    def share(self) -> Share:
        """Which rows of each batch this process reads.

        Raises:
            UserError: rows lie across hosts in a way that has no shares.
        """
        return share_of(self.mesh)

    @property
    def compute_dtype(self) -> jnp.dtype:
        """Of activations, and of parameters that are not trained."""
        return jnp.dtype(self.settings.train.compute_dtype)

    def check_mesh(self, config: ModelConfig) -> None:
        """Refuses a model that the mesh cannot hold or its attention cannot take, before any array is made.

        Raises:
            UserError: names the leaf, the axis and the mend; or `mesh.attention`.
        """
        kernel, platform = self.settings.mesh.attention, platform_of(self.mesh)
        refuse_unsupported(kernel, platform, self.compute_dtype, config.head_dim)
        leaves = {path: leaf.axes for path, leaf in declare(config).items()}
        rules.check(leaves, config.sizes, self.mesh.shape, self.fallbacks)

    def load(self, checkpoint: Checkpoint, dtype: jnp.dtype | None = None) -> dict[str, Any]:
        """A checkpoint's parameters on the mesh, in the compute dtype unless another is given."""
        shardings = param_shardings(checkpoint.config, self.mesh, self.fallbacks)
        return load_params(checkpoint, shardings, dtype or self.compute_dtype)

    def load_teacher(self, dtype: jnp.dtype | None = None) -> dict[str, Any]:
        """The teacher's parameters on the mesh, in the compute dtype or another, with the student's words alone."""
        params, cut = flatten(self.load(self.teacher, dtype)), self._teacher_cut
        if cut.kept:
            self.check_mesh(self.teacher_config)
            shardings = flatten(param_shardings(self.teacher_config, self.mesh, self.fallbacks))
            for path, leaf in declare(self.teacher.config).items():
                if "vocab" in leaf.axes:
                    taken = functools.partial(gather, leaf=leaf, plan=cut)
                    params[path] = jax.jit(taken, out_shardings=shardings[path])(params[path])
        return unflatten(params)

    @functools.cached_property
    def source_print(self) -> str:
        """A fingerprint of the source's files."""
        return self.source.fingerprint

    @functools.cached_property
    def teacher_print(self) -> str:
        """A fingerprint of the teacher's files."""
        if self.teacher is self.source:
            return self.source_print
        return self.teacher.fingerprint


def read_plan(file: str | pathlib.Path, field: str = "plan.file") -> Plan:
    """The plan in a file that a field of the config names.

    Raises:
        UserError: it cannot be read, or is no plan; names the field and the file.
    """
    try:
        text = paths.make(file).read_bytes()
    except OSError as error:
        raise UserError(f"{field}: {file} cannot be read ({error}); name a plan.json") from error
    try:
        return Plan.from_json(text)
    except UserError as error:  # which knows of no file
        raise UserError(f"{field}: {file}: {str(error).removeprefix('plan.json: ')}") from error


def begin(chosen: Settings, check: Callable[[Run], None] = lambda run: None) -> Run:
    """A run whose resolved config is written to its workdir.

    Args:
        chosen: its settings.
        check: says what is wrong with them before anything is written.

    Raises:
        UserError: as `Run.begin` or `check`, or the settings are of several rounds, which only the whole flow can make.
    """
    if chosen.rounds:
        raise UserError("rounds: only python -m chopjax.train runs rounds; take them out, or give it this config")
    run = Run(chosen)
    check(run)
    run.begin()
    return run


@functools.cache
def _hold(workdir: pathlib.Path) -> int:
    """Makes the folder and locks it for as long as this process lives; a file system without locks is let pass."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"workdir: {workdir} cannot be made ({error.strerror}); name another") from error
    folder = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        raise UserError(f"workdir: another process works in {workdir}; wait for it, or name another") from error
    except OSError:
        pass
    return folder


def _refuse_schemes(chosen: Settings) -> None:
    """Refuses stores in which what is kept there cannot be kept, before any work."""
    for field, value in {"workdir": chosen.workdir, "data.rows": chosen.data.rows}.items():
        if paths.scheme(value) not in ("", "gs"):
            raise UserError(f"{field}: {value}: Orbax and ArrayRecord know of no store but gs://; use that, or a disk")
    paths.make(chosen.export.folder)
    cache = chosen.cache.path or chosen.workdir
    if chosen.cache.kind != "off" and paths.is_remote(cache):
        raise UserError("cache.path: a teacher's cache is kept on a disk that all hosts share, no store; name a folder")


def _refuse_foreign(workdir: pathlib.Path) -> None:
    """Refuses a folder of something else, such as a model, with a file that a run would write over."""
    if (workdir / "stages").is_dir() or settings.written(workdir):
        return
    for name in ("config.json", "metrics.jsonl", "checkpoints"):
        if (workdir / name).exists():
            raise UserError(f"workdir: {workdir / name} is there, but was not made by a run; name another workdir")
