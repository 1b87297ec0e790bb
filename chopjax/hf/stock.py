"""How stock `transformers`, and PyTorch where it is installed, read a folder. What they raise or log is a finding."""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from chopjax import paths
from chopjax.errors import UserError
from chopjax.hf.checkpoint import Checkpoint
from chopjax.hf.findings import Finding, first_line
from chopjax.hf.source_files import CONFIG, GENERATION_CONFIG
from chopjax.hf.trimmed import SETTINGS, TOKENIZER, has_tokenizer

# A larger model is not loaded: its float32 copy would not fit next to the run.
LARGEST_BYTES = 4 << 30

# Text with digits, capitals, letters outside of ASCII and white space, which pre-tokenizers split in different ways.
TEXT = "Hello in 123456 über  the Water\n x_y"


def available(checkpoint: Checkpoint) -> bool:
    """Whether PyTorch is installed, and the model on this machine and small enough to be loaded once more."""
    return (
        _torch()
        and not paths.is_remote(checkpoint.place)
        and sum(entry.nbytes for entry in checkpoint.tensors.values()) <= LARGEST_BYTES
    )


def findings(folder: Path, vocab: int) -> list[Finding]:
    """How `transformers` reads the small files of a folder; no weights are read.

    Args:
        folder: on this machine.
        vocab: rows of the embedding.
    """
    found: list[Finding] = []
    config = None
    with _logged(found, CONFIG):
        if config := _read(found, CONFIG, lambda: _config(folder)):
            found += _layer_types(config)
            if _torch():
                _read(found, CONFIG, lambda: _build(config), "does not build the model")
    if (folder / GENERATION_CONFIG).is_file():
        with _logged(found, GENERATION_CONFIG):
            _read(found, GENERATION_CONFIG, lambda: _generation_config(folder))
    if config and has_tokenizer(folder):  # the tokenizer's reader reads the config too
        with _logged(found, TOKENIZER):
            if tokenizer := _read(found, TOKENIZER, lambda: _tokenizer(folder)):
                found += [*_tokens(tokenizer, folder, vocab), *_templates(tokenizer)]
    return found


def difference(checkpoint: Checkpoint, tokens: Sequence[int], ours: Float[np.ndarray, "length vocab"]) -> float:
    """Largest difference of float32 logits from ours, over the largest of ours.

    Args:
        checkpoint: what `transformers` loads.
        tokens: token ids, taken modulo the vocabulary.
        ours: our float32 logits for them.

    Raises:
        UserError: `transformers` does not load the model, or it does not run.
    """
    tokens = [token % checkpoint.config.vocab for token in tokens]
    try:
        logits = _logits(checkpoint.folder, tokens)
    except Exception as error:  # whatever it raises is the finding
        raise UserError(
            f"{checkpoint.folder}: stock transformers does not load and run the model ({first_line(error)})"
        ) from error
    return float(np.abs(logits - ours).max() / np.abs(ours).max())


def _logits(folder: Path, tokens: Sequence[int]) -> Float[np.ndarray, "length vocab"]:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model(torch.tensor([list(tokens)])).logits[0].numpy()


def _torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _read(found: list[Finding], subject: str, read: Callable[[], Any], fault: str = "does not read it") -> Any:
    """What `read` returns; None with a finding where it raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries themselves
            return read()
    except Exception as error:  # whatever it raises is the finding
        found.append(Finding("error", subject, f"transformers {fault}: {first_line(error)}"))
        return None


@contextlib.contextmanager
def _logged(found: list[Finding], subject: str) -> Iterator[None]:
    """Makes findings of the warnings that transformers logs, in place of lines on stderr."""
    logger = logging.getLogger("transformers")
    before, level = logger.handlers, logger.level
    handler = logging.Handler(logging.WARNING)
    lines: list[str] = []
    handler.emit = lambda record: lines.append(" ".join(record.getMessage().split()))  # type: ignore[method-assign]
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.handlers = before
        logger.setLevel(level)
        found += [Finding("warning", subject, f"transformers warns: {line}") for line in dict.fromkeys(lines)]


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _generation_config(folder: Path) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig.from_pretrained(folder, local_files_only=True)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _build(config: Any) -> None:
    """Makes the model without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _layer_types(config: Any) -> Iterator[Finding]:
    types = getattr(config, "layer_types", None)
    if types is not None and len(types) != config.num_hidden_layers:
        yield Finding("error", "layer_types", f"has {len(types)} entries for {config.num_hidden_layers} layers")


def _tokens(tokenizer: Any, folder: Path, vocab: int) -> Iterator[Finding]:
    """Tokens beyond the embedding, and text that is split otherwise than `tokenizer.json` says."""
    if not (folder / TOKENIZER).is_file():
        return
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(folder / TOKENIZER))
    own.no_truncation()
    own.no_padding()
    listed = own.get_vocab(with_added_tokens=True)
    for token, number in tokenizer.get_vocab().items():
        if token not in listed and number >= vocab:
            yield Finding(
                "warning", SETTINGS, f"transformers gives {token!r} the id {number}, but the embedding has {vocab} rows"
            )
    if tokenizer.encode(TEXT, add_special_tokens=False) != own.encode(TEXT, add_special_tokens=False).ids:
        yield Finding(
            "warning",
            SETTINGS,
            f"transformers reads the tokenizer as {type(tokenizer).__name__}, which splits text otherwise than "
            "tokenizer.json; set tokenizer_class to PreTrainedTokenizerFast",
        )


def _templates(tokenizer: Any) -> Iterator[Finding]:
    """Chat templates, of any file, that are not Jinja."""
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    found = tokenizer.chat_template or {}
    for name, text in ({"default": found} if isinstance(found, str) else found).items():
        try:
            render_jinja_template([[{"role": "user", "content": "a"}]], chat_template=text)
        except TemplateSyntaxError as error:
            yield Finding("error", f"chat template {name!r}", f"is not valid Jinja ({first_line(error)}); correct it")
        except Exception:  # a valid template may refuse this conversation
            continue
