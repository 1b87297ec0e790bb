"""What is measured on held-out rows, and what the model is asked to say."""

import dataclasses

from chopjax import checks
from chopjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Perplexity, divergence from the teacher, and sample texts.

    Attributes:
        rows: held-out rows to read, at even distances over all sources; 0 for all of them.
        batch: rows in one forward pass, over all devices.
        window: tokens in a rolling window over the held-out text as one stream, which is scored besides; 0 for none.
        stride: tokens by which the window moves; 0 for half a window.
        choices: JSONL files of questions with several answers (`chopjax.evaluate.choices`), for each of which accuracy
            is measured, plain and with log-likelihoods by the length of the answer.
        prompts: texts that the models continue.
        new_tokens: tokens to sample for each prompt.
        temperature: of sampling; 0 takes the most likely token.
    """

    rows: int = 0
    batch: int = 8
    window: int = 0
    stride: int = 0
    choices: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    new_tokens: int = 64
    temperature: float = 0.0

    def __post_init__(self) -> None:
        checks.at_least(self, "evaluate", 1, "batch")
        checks.at_least(self, "evaluate", 0, "rows", "window", "stride", "new_tokens", "temperature")
        if self.window and self.stride > self.window:
            raise UserError(
                f"evaluate.stride is {self.stride}; give at most evaluate.window = {self.window}, or tokens are skipped"
            )
