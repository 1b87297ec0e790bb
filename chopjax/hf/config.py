"""How a checkpoint is written."""

import dataclasses
from typing import Literal

from chopjax import checks


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """The exported Hugging Face folder.

    Attributes:
        folder: where it goes; empty for `WORKDIR/export`.
        dtype: of the written tensors; `source` for that of the source checkpoint.
        max_shard: largest file, in bytes.
    """

    folder: str = ""
    dtype: Literal["source", "float32", "bfloat16", "float16"] = "source"
    max_shard: int = 5_000_000_000

    def __post_init__(self) -> None:
        checks.choices(self, "export")
        checks.at_least(self, "export", 1, "max_shard")
