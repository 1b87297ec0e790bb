"""Repeated chopping: the whole flow again and again, each round on what the round before it exported.

Minitron's guideline for large cuts (prune about 30 %, distil, score again, prune) and Just CHOP's gradual removal
(figure 6: some layers, some tokens, some layers) are both this loop, with other changes to each round.
"""

from collections.abc import Callable
from typing import Any

from chopjax import files, paths
from chopjax.commands import export, export_folder
from chopjax.commands.run import EXPORT, Run
from chopjax.commands.settings import Settings
from chopjax.errors import UserError
from chopjax.report.reader import read_summary

ROUNDS, SUMMARY = "rounds.json", "summary.json"


def main(chosen: Settings, flow: Callable[[Settings], None]) -> None:
    """Runs every round that is not done yet, and writes what came of each to `WORKDIR/rounds.json`.

    Args:
        chosen: settings with `rounds`.
        flow: the whole flow of one round, which skips what it finds done.
    """
    whole = Run(chosen)
    rounds = each(chosen, whole.source.dtype)
    _check_exports(chosen, rounds, whole.writer)
    whole.begin()
    done: list[dict[str, Any]] = []
    for number, one in enumerate(rounds, 1):
        whole.say(f"round {number} of {len(chosen.rounds)}: {one.workdir}")
        flow(one)
        summary = paths.make(one.workdir) / SUMMARY
        figures = read_summary(summary)
        done.append({"round": number, "workdir": one.workdir, "changes": dict(chosen.rounds[number - 1])} | figures)
        if whole.writer:
            files.write_json(whole.workdir / ROUNDS, done)


def each(chosen: Settings, dtype: str) -> list[Settings]:
    """The settings of each round.

    A round chops what the one before it exported, which is kept in float32 so that no round loses bits; the teacher is
    the uncut source throughout, unless a round names another. The last round's export is the run's.

    Args:
        chosen: settings with `rounds`.
        dtype: of the source, which the last export goes back to unless the settings say otherwise.

    Raises:
        UserError: activations are compared with the teacher's by the plan of a later round; or rounds would write other
            rows to one cache.
    """
    workdir, source = paths.make(chosen.workdir), chosen.source
    rounds = []
    for number, changes in enumerate(chosen.rounds, 1):
        folder = workdir / f"round-{number}"
        last = number == len(chosen.rounds)
        own: dict[str, Any] = {"source": source, "workdir": str(folder), "rounds": ()}
        own["teacher"] = chosen.teacher or chosen.source
        if last:
            own["export.folder"] = chosen.export.folder or str(workdir / EXPORT)
            own["export.dtype"] = dtype if chosen.export.dtype == "source" else chosen.export.dtype
        else:
            own |= {"export.folder": str(folder / EXPORT), "export.dtype": "float32"}
        rounds.append(chosen.changed(own | dict(changes)))
        if number > 1:
            _refuse_plans_of_others(rounds[-1], number, any(one.plan.embed for one in rounds))
        source = rounds[-1].export.folder
    _refuse_caches_of_others(rounds)
    return rounds


def _check_exports(chosen: Settings, rounds: list[Settings], writer: bool) -> None:
    """Refuses, before the first round, a folder into which a round could not export.

    Raises:
        UserError: names the folder and the field.
    """
    export_folder.check(chosen, writer)
    folders = [one.export.folder for one in rounds]
    if twice := [folder for number, folder in enumerate(folders) if folder in folders[:number]]:
        raise UserError(f"rounds: two rounds export to {twice[0]}; name another export.folder in one of them")
    for one in rounds:
        export.check(Run(one))


def _refuse_caches_of_others(rounds: list[Settings]) -> None:
    """Refuses a cache that a later round would find to be of the rows that another round reached."""
    first: dict[str, tuple[int, tuple[int, ...]]] = {}
    for number, one in enumerate(rounds, 1):
        if one.cache.kind == "off" or one.cache.rows == "all" or not one.cache.path:
            continue
        reaching = one.seed, one.train.batch, one.train.steps, one.train.steps_before_chop, one.evaluate.rows
        earlier, before = first.setdefault(one.cache.path, (number, reaching))
        if reaching != before:
            raise UserError(
                f"rounds: {number} reaches other rows than {earlier} of the cache that both keep in cache.path = "
                f"{one.cache.path!r}; set cache.rows='all', or leave cache.path empty for a cache in each round"
            )


def _refuse_plans_of_others(one: Settings, number: int, narrower: bool) -> None:
    """Refuses activations compared by a plan: that of a later round says what was kept of the round before."""
    hidden = one.hidden
    by_plan = {
        "hidden.layer_map": hidden.layer_map == "plan",
        "hidden.project": hidden.project == "gather" and narrower,
    }
    for name in (name for name, wanted in by_plan.items() if wanted and hidden.terms):
        raise UserError(
            f"rounds: {name} in round {number} would go by a plan that is not of the teacher; take hidden.layer_map "
            "'last' or 'uniform' and hidden.project 'shared' or 'per_layer'"
        )
