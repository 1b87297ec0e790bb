"""The tokens that end what a student writes."""

from chopjax.commands.run import Run
from chopjax.hf.token_ids import end_ids


def end_tokens(run: Run) -> tuple[int, ...]:
    """Ascending ids: those that `generate` of transformers ends at, the tokenizer's EOS, and the end of documents.

    They are the student's, whose ids a trimmed vocabulary changes.

    Raises:
        UserError: a file that names them is not a JSON object.
    """
    tokenizer, chosen = run.student_tokenizer, run.settings.data.eos_token
    own = {tokenizer.eos, tokenizer.token_id(chosen) if chosen else None}
    return tuple(sorted(end_ids(run.student.folder) | {token for token in own if token is not None}))
