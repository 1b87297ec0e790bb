"""Whether a teacher that is not the source can read what the student reads."""

from chopjax.commands.run import Run
from chopjax.data.checks import check_length
from chopjax.errors import UserError


def check(run: Run) -> None:
    """Refuses a teacher that the run's rows are too long for, or that lacks words of its tokenizer.

    Raises:
        UserError: it has fewer positions than a row has tokens, or a smaller vocabulary than the tokenizer; or its
            tokenizer is another, or there are no rows.
    """
    if run.teacher is run.source:
        return
    config, tokens = run.teacher.config, run.tokenizer.vocab
    if config.vocab < tokens:
        raise UserError(
            f"teacher: its vocabulary has {config.vocab} rows, but the tokenizer has {tokens} tokens; "
            "name a teacher that knows all of them"
        )
    length = run.settings.data.length if run.settings.data.sources else run.data.length
    check_length(length, config.positions, "teacher")
