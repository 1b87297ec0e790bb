"""A config of small rows, and the documents that rows hold."""

import pathlib

import numpy as np
import tokenizers

from chopjax.data.config import DataConfig, TextSource
from chopjax.data.rows import Rows

LENGTH = 37
EOS = 1


def config_of(*sources: TextSource, **fields: object) -> DataConfig:
    return DataConfig(**{"sources": sources, "length": LENGTH, "heldout_fraction": 0.2, **fields})


def texts_in(rows: Rows, tokenizer_folder: pathlib.Path) -> list[str]:
    """The documents that rows hold, put together again."""
    core = tokenizers.Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokens = np.concatenate([np.zeros(0, np.int32), *(row["tokens"][row["segment_ids"] > 0] for row in rows)])
    ends = np.flatnonzero(tokens == EOS)
    assert len(tokens) == (ends[-1] + 1 if len(ends) else 0)
    return [core.decode(part[:-1]) for part in np.split(tokens, ends + 1)[:-1]]
