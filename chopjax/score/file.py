"""The score file: sums of statistics with counts and provenance; portable, mergeable, without jax.

One safetensors file. Its arrays add up over batches, devices, hosts and domains; what cannot be added (roots, ratios,
ranks) is made from them when a plan is made. Every array has a leading axis of the two `HALVES` of the calibration rows
(even and odd), so that the stability of a ranking can be told.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np
import safetensors.numpy
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from chopjax import files, paths, records
from chopjax.axes import Sizes
from chopjax.errors import UserError, short
from chopjax.score import checked

HALVES = 2
FORMAT = 1

AGAIN = "score again"

Sums = Mapping[str, Float[np.ndarray, "half *rest"]]


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreFile:
    """Summed statistics of a model, and where they are from.

    Attributes:
        sums: name → float64 array with a leading axis of the two halves; int64 where the sums are counts of words.
        model: digest of the model scored.
        data: what was scored: `DIGEST/FIRST-END`, rows FIRST ... END − 1 of those of that digest, or any other text
            that names rows.
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
        facts = {"format": FORMAT, **facts, "data": list(self.data), "sizes": dict(self.sizes)}
        # safetensors writes memory as it lies, whatever the strides.
        arrays = {name: np.ascontiguousarray(value) for name, value in self.sums.items()}
        metadata = {"chopjax_scores": json.dumps(facts | {"digests": checked.digests(arrays, facts)})}
        files.write_bytes(path, safetensors.numpy.save(arrays, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ScoreFile":
        """Reads what `save` wrote.

        Raises:
            UserError: the file is missing, damaged, no score file, or of another format.
        """
        try:
            local = paths.here(paths.make(path)) if paths.is_remote(path) else path
            with safe_open(local, "numpy") as opened:
                text = (opened.metadata() or {}).get("chopjax_scores", "")
                sums = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise UserError(f"{path}: no such score file; name one that python -m chopjax.score wrote") from None
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: damaged, or no score file ({_line(error)}); score again") from error
        if not text:
            raise UserError(f"{path}: not a score file; name one that python -m chopjax.score wrote")
        where = str(path)
        facts = records.parse_object(text, where, AGAIN)
        digests = records.shaped({"digests": facts.pop("digests", None)}, _Digests, where, AGAIN).digests
        plain = dict(facts)
        records.check_format(plain, FORMAT, where, AGAIN)
        if digests is not None:  # absent in files of earlier versions
            try:
                checked.check(sums, digests, facts)
            except ValueError as error:
                raise UserError(f"{path}: damaged ({short(str(error))}); {AGAIN}") from error
        found = records.shaped(plain, _Facts, where, AGAIN)
        file = cls(sums, found.model, found.data, found.sizes, found.source, found.dtype, found.length)
        for name, value in sums.items():
            if not value.ndim or len(value) != HALVES or not np.isfinite(value).all():
                raise UserError(f"{path}: {name} is no sum over two halves of rows; score again")
        return file

    @classmethod
    def merge(cls, scored: Sequence["ScoreFile"], names: Sequence[str] = ()) -> "ScoreFile":
        """The sums of several files, as one pass over all their rows would have given them.

        Args:
            scored: at least one.
            names: what each is called in messages; by default its place in `score.files`.

        Raises:
            UserError: the files are of different models, dtypes, lengths or statistics, or two hold the same rows.
        """
        if not scored:
            raise UserError("score.files is empty; name at least one score file")
        names = names or [f"score.files[{number}]" for number in range(len(scored))]
        base, first = scored[0], names[0]
        sums, seen = dict(base.sums), [(data, first) for data in base.data]
        for file, name in zip(scored[1:], names[1:], strict=True):
            file.check_model(base.model, name)
            for fact in ("dtype", "length"):
                one, other = getattr(base, fact), getattr(file, fact)
                if one != other:
                    raise UserError(f"{name}: scored with {fact} {other}, but {first} with {one}; score both alike")
            differing = sorted(sums.keys() ^ file.sums.keys())
            if differing:
                raise UserError(f"{name}: {differing[0]} is in this file or in {first}, not in both; score both alike")
            for own in file.data:
                holder = next((holder for data, holder in seen if _overlap(own, data)), None)
                if holder:
                    raise UserError(f"{name}: holds rows that {holder} holds too; leave one of them out")
            seen += [(data, name) for data in file.data]
            sums = {key: value + file.sums[key] for key, value in sums.items()}
        return dataclasses.replace(base, sums=sums, data=tuple(data for data, _ in seen))

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


@dataclasses.dataclass(frozen=True)
class _Facts:
    """The metadata of a score file."""

    model: str
    data: tuple[str, ...]
    sizes: Mapping[str, records.Count]
    source: str
    dtype: str
    length: records.Count


@dataclasses.dataclass(frozen=True)
class _Digests:
    digests: Mapping[str, str] | None


def _overlap(one: str, other: str) -> bool:
    """Whether two entries of `ScoreFile.data` name the same row."""
    ranges = [re.fullmatch(r"(.*)/(\d{1,18})-(\d{1,18})", data) for data in (one, other)]
    if not all(ranges):
        return one == other
    (digest, start, end), (other_digest, other_start, other_end) = (found.groups() for found in ranges if found)
    return digest == other_digest and int(start) < int(other_end) and int(other_start) < int(end)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
