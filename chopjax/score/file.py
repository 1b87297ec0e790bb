"""The score file: sums of statistics with counts and provenance; portable, mergeable, without jax.

One safetensors file. Its arrays add up over batches, devices, hosts and domains; what cannot be added (roots, ratios,
ranks) is made from them when a plan is made. Every array has a leading axis of the two `HALVES` of the calibration rows
(even and odd), so that the stability of a ranking can be told.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from chopjax import files
from chopjax.axes import Sizes
from chopjax.errors import UserError

HALVES = 2
FORMAT = 1

Sums = Mapping[str, Float[np.ndarray, "half *rest"]]


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreFile:
    """Summed statistics of a model, and where they are from.

    Attributes:
        sums: name → float64 array with a leading axis of the two halves; int64 where the sums are counts of words.
        model: digest of the model scored.
        data: digests of the rows scored.
        sizes: sizes of the model's axes.
        source: what the model was called.
        dtype: in which the pass ran.
        length: tokens of a row.
    """

    sums: Sums
    model: str
    data: tuple[str, ...]
    sizes: Sizes
    source: str
    dtype: str
    length: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, which appears whole or not at all.

        Raises:
            UserError: a sum is NaN or infinite.
        """
        for name, value in self.sums.items():
            if not np.isfinite(value).all():
                raise UserError(
                    f"scores: {name} is not finite, so the model overflows in {self.dtype}; "
                    "set train.compute_dtype to bfloat16 or float32"
                )
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "sums"}
        metadata = {"chopjax_scores": json.dumps({"format": FORMAT, **facts, "sizes": dict(self.sizes)})}
        # safetensors writes memory as it lies, whatever the strides.
        arrays = {name: np.ascontiguousarray(value) for name, value in self.sums.items()}
        files.write_bytes(path, safetensors.numpy.save(arrays, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ScoreFile":
        """Reads what `save` wrote.

        Raises:
            UserError: the file is missing, damaged, no score file, or of another format.
        """
        try:
            with safe_open(path, "numpy") as opened:
                text = (opened.metadata() or {}).get("chopjax_scores", "")
                sums = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise UserError(f"{path}: no such score file; name one that python -m chopjax.score wrote") from None
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: damaged, or no score file ({_line(error)}); score again") from error
        if not text:
            raise UserError(f"{path}: not a score file; name one that python -m chopjax.score wrote")
        try:
            facts: dict[str, Any] = json.loads(text)
            if facts.pop("format") != FORMAT:
                raise UserError(f"{path}: another version of chopjax wrote these scores; score again")
            facts["data"] = tuple(facts["data"])
            file = cls(sums, **facts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged metadata ({_line(error)}); score again") from error
        for name, value in sums.items():
            if not value.ndim or len(value) != HALVES or not np.isfinite(value).all():
                raise UserError(f"{path}: {name} is no sum over two halves of rows; score again")
        return file

    def check_model(self, model: str, name: str) -> None:
        """Refuses scores of another model.

        Args:
            model: digest of the model that the scores are wanted for.
            name: what this file is called.

        Raises:
            UserError: it is not the model scored.
        """
        if self.model != model:
            raise UserError(f"{name}: scores of another model ({self.source}); score this one, or name its own file")


def merge(scored: Mapping[str, ScoreFile]) -> ScoreFile:
    """The sums of several files, as one pass over all their rows would have given them.

    Args:
        scored: at least one, by the name that it goes by in messages.

    Raises:
        UserError: the files are of different models, dtypes, lengths or statistics, or two hold the same rows.
    """
    (first, base), *others = scored.items()
    sums, seen = dict(base.sums), dict.fromkeys(base.data, first)
    for name, file in others:
        file.check_model(base.model, name)
        for fact in ("dtype", "length"):
            one, other = getattr(base, fact), getattr(file, fact)
            if one != other:
                raise UserError(f"{name}: scored with {fact} {other}, but {first} with {one}; score both alike")
        differing = sorted(sums.keys() ^ file.sums.keys())
        if differing:
            raise UserError(f"{name}: {differing[0]} is there or in {first}, not in both; score both alike")
        for digest in file.data:
            if digest in seen:
                raise UserError(f"{name}: holds rows that {seen[digest]} holds too; leave one of them out")
        seen |= dict.fromkeys(file.data, name)
        sums = add(sums, file.sums)
    return dataclasses.replace(base, sums=sums, data=tuple(seen))


def load_merged(paths: Sequence[str | os.PathLike[str]]) -> ScoreFile:
    """Reads files and merges them.

    Raises:
        UserError: as `ScoreFile.load` and `merge`, or no or twice the same path is given.
    """
    if not paths:
        raise UserError("score.files is empty; name at least one score file")
    resolved = [str(Path(path).resolve()) for path in paths]
    for path in paths:
        if resolved.count(str(Path(path).resolve())) > 1:
            raise UserError(f"score.files names {path} twice; name it once")
    return merge({str(path): ScoreFile.load(path) for path in paths})


def add(total: Sums | None, sums: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Adds the sums of one batch (numpy or jax arrays) to a total: float64, and int64 where they are whole numbers."""
    exact = {name: np.asarray(value) for name, value in sums.items()}
    exact = {name: value.astype(np.int64 if value.dtype.kind in "iu" else np.float64) for name, value in exact.items()}
    return exact if total is None else {name: total[name] + value for name, value in exact.items()}


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
