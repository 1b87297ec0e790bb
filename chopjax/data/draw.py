"""Draws the held-out documents of all sources, and divides long texts where too few documents are drawn."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NoReturn

from chopjax.data.config import TextSource
from chopjax.data.find import find_files
from chopjax.data.heldout import Drawn, divided, hash_of, text_of, workable
from chopjax.data.job import SPLITS, Job, existing
from chopjax.errors import UserError


def divide(job: Job, digests: Sequence[str]) -> None:
    """Sets which texts are divided: the long ones, where no document is drawn to be held out, or all of a source are.

    Args:
        job: its rule is completed.
        digests: of its sources, in their order.

    Raises:
        UserError: no text is long enough for that; names a fraction that works.
    """
    fraction = job.rule.fraction
    if not fraction:
        return
    pairs = zip(job.config.sources, digests, strict=True)
    sides = {source: _sides(job, source, digest) for source, digest in pairs if not source.heldout}
    nothing = not job.rule.kept_out and not any("heldout" in there for there in sides.values())
    troubled = [source for source, there in sides.items() if there and (nothing or "train" not in there)]
    if not troubled:
        return
    drawn = {source.label: _drawn(job, source) for source in troubled}
    found = divided(list(drawn.values()), fraction, not nothing)
    if found is None:
        _refuse(job, drawn, nothing)
    job.rule = dataclasses.replace(job.rule, divided=found)
    for label, one in drawn.items():
        if long := [characters for hashed, characters in one.documents if hashed in found]:
            job.divided_in[label] = len(long)
            what = "one document, so its end is" if len(long) == 1 else f"{len(long)} documents, so the end of each is"
            job.say(f"{label}: {what} held out: the last {100 * fraction:.3g} % of {sum(long):,} characters")


def _drawn(job: Job, source: TextSource) -> Drawn:
    divisible = not source.hub and not source.chats and find_files(source)[0] == "text"
    found = ((hash_of(document), len(text_of(document))) for document in job.documents(source))
    return Drawn(divisible, tuple(pair for pair in found if pair[0] not in job.rule.kept_out))


def _sides(job: Job, source: TextSource, digest: str) -> set[str]:
    """The splits that get any document of a source if none is divided; both where its rows are there and say so."""
    found, reason = existing(job.out / source.label, job.recipe(source, digest), job.tool_template())
    if found and not reason:
        return {split for split, info in found.items() if info.rows}
    sides: set[str] = set()
    for document in job.documents(source):
        sides.add("heldout" if job.rule.drawn(hash_of(document)) else "train")
        if len(sides) == len(SPLITS):
            break
    return sides


def _refuse(job: Job, drawn: Mapping[str, Drawn], nothing: bool) -> NoReturn:
    """Says that one side came out empty, and which fraction gives both sides some text."""
    fraction = job.rule.fraction
    share = workable(list(drawn.values()), fraction, bool(job.rule.kept_out))
    better = f"set it to {share:.16g}" if share is not None else "give more documents"
    if nothing:
        found = _count(sum(len(one.documents) for one in drawn.values()))
        raise UserError(
            f"data.heldout_fraction is {fraction}, but none of the {found} fell to the held-out rows; {better}, mark a "
            "source as heldout, or set it to 0 for none"
        )
    label, one = next((label, one) for label, one in drawn.items() if divided([one], fraction, True) is None)
    if not one.documents:
        raise UserError(
            f"data.sources: {label} gives no row to train on (all its documents are in held-out sources too); leave "
            "out one of the two"
        )
    raise UserError(
        f"data.sources: {label} gives no row to train on ({_count(len(one.documents))}, all held out by "
        f"data.heldout_fraction = {fraction}); {better}, or set it to 0 for none"
    )


def _count(number: int) -> str:
    return f"{number} document{'s' * (number != 1)}"
