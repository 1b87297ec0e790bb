"""Whether rows, tokenizers and models fit together; each misfit is one line that names the mend."""

from chopjax.data.tokenize import Tokenizer
from chopjax.errors import UserError


def check_length(length: int, positions: int, what: str = "model") -> None:
    """Refuses rows longer than the sequences that a model is meant for.

    Args:
        length: tokens a row.
        positions: the model's longest sequence, in tokens.
        what: the model, for the message.

    Raises:
        UserError: they are longer.
    """
    if length > positions:
        raise UserError(f"data.length is {length}, but the {what} has {positions} positions; use {positions} or fewer")


def check_vocab(max_token: int, vocab: int, where: str = "the rows") -> None:
    """Refuses token ids that a model has no embedding for.

    Args:
        max_token: the highest id that occurs.
        vocab: rows of the model's embedding table.
        where: what holds the ids, for the message.

    Raises:
        UserError: `max_token` is `vocab` or more.
    """
    if max_token >= vocab:
        raise UserError(
            f"{where}: token id {max_token} is outside the model's vocabulary of {vocab}; use the model's own tokenizer"
        )


def check_tokenizers(digest: str, other: str, what: str = "teacher and student", difference: str = "") -> None:
    """Refuses to compare distributions over vocabularies that differ.

    Args:
        digest: `Tokenizer.digest` of the one, or `RowsInfo.tokenizer` of rows.
        other: of the other.
        what: the two, for the message.
        difference: between the two, as `first_difference` has it; by default that of the digests.

    Raises:
        UserError: the digests differ.
    """
    if digest != other:
        raise UserError(
            f"{what} have different tokenizers ({difference or f'digests {digest} and {other}'}); distillation needs "
            "one vocabulary: choose a teacher of the same family, or prepare the rows with this model's tokenizer"
        )


def first_difference(one: Tokenizer, other: Tokenizer, names: tuple[str, str] = ("teacher", "student")) -> str:
    """The lowest id that two vocabularies spell otherwise, or that they differ in their merges alone."""
    for number in range(max(one.vocab, other.vocab)):
        spelled = [tokenizer.spelling(number) for tokenizer in (one, other)]
        if spelled[0] != spelled[1]:
            first, second = (
                f"{'no token' if text is None else repr(text)} for the {name}"
                for text, name in zip(spelled, names, strict=True)
            )
            return f"id {number} is {first} and {second}"
    return "the same tokens, but other merges or scores"
