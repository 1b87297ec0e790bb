"""What several targets call of chopjax. Importing this takes seconds; readers are forked from a process that has."""

import pathlib

import jax
import jinja2.sandbox
import numpy as np
import orbax.checkpoint
import pyarrow.parquet
import transformers.utils.chat_template_utils
from array_record.python import array_record_module
from safetensors.numpy import load_file
from torture.targets.target import CANARY, Draw

import chopjax.commands.run
import chopjax.data.teacher_cache
import chopjax.hf.verify
import chopjax.report.page
import chopjax.report.reader
import chopjax.train.checkpoints
from chopjax.commands.chop import chop_files
from chopjax.commands.run import read_plan
from chopjax.data.tokenize import load_tokenizer
from chopjax.hf.checkpoint import open_checkpoint

LOADED = (
    *(jax, jinja2.sandbox, orbax.checkpoint, pyarrow.parquet, transformers.utils.chat_template_utils),
    *(array_record_module, chopjax),
)
SHARD_BYTES = 10**9


def chopped_differs(model: pathlib.Path, draw: Draw) -> str:
    """Chops a folder by the finished run's plan; says what its student has otherwise than the finished run's."""
    plan = read_plan(draw.bench.finished / "plan.json")
    source = open_checkpoint(model)
    load_tokenizer(source.folder)
    student = draw.folder / "student"
    chop_files(source, plan, student, SHARD_BYTES)
    if any(CANARY.encode() in file.read_bytes() for file in student.iterdir()):
        return "a file outside of the folder was copied"
    ours, theirs = (
        load_file(student / "model.safetensors"),
        load_file(draw.bench.finished / "student/model.safetensors"),
    )
    return "the student has other weights" if not same(ours, theirs) else ""


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    """Whether two sets of arrays are equal, bit for bit."""
    return ours.keys() == theirs.keys() and all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
