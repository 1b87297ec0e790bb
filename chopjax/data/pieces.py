"""A tokenizer whose folder has no `tokenizer.json`, in the form of the library `tokenizers`."""

import importlib
import pathlib
import re
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers

from chopjax.errors import UserError

SPACE = "\u2581"
_INSTALL = "pip install 'chopjax[sentencepiece]'"
# What conversions get wrong: white space of all kinds, prefixes, digits, accents, compatibility forms, unknown letters.
_PROBES = (
    "river stone 1234, h\u00e9ron  twice\n",
    " Lead and trail  ",
    "def f(a):\n\treturn a  \n\n",
    "gr\u00f6\u00dfer \U0001f41f \ufb01 \u2460 e\u0301 \u3000\u6c34 CamelCase 3.14e10",
)


def convert(folder: pathlib.Path) -> tokenizers.Tokenizer:
    """Reads whatever `transformers.AutoTokenizer` can read. Of a SentencePiece model the ids are checked.

    Raises:
        UserError: it cannot read the folder, or gives other ids than SentencePiece; nothing in it is ever executed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; a tokenizer is read from a Hugging Face model folder")
    _check_files(folder)
    if (folder / "tokenizer.model").is_file():
        return _sentencepiece(folder)
    return _by_transformers(folder)


def _check_files(folder: pathlib.Path) -> None:
    """Refuses what transformers would read wrongly, or for whose sake it would ask for code."""
    model = folder / "tokenizer.model"
    ranks = [model] if model.is_file() and _is_tiktoken(model) else sorted(folder.glob("*.tiktoken"))
    if ranks:
        raise UserError(
            f"{ranks[0]}: a tiktoken vocabulary, which does not say how text is split; put the model's tokenizer.json "
            "there"
        )
    if (folder / "vocab.json").is_file() and not (folder / "merges.txt").is_file() and not model.is_file():
        raise UserError(
            f"{folder}: has vocab.json, but no merges.txt; put the model's merges.txt or tokenizer.json there"
        )


def _is_tiktoken(file: pathlib.Path) -> bool:
    """Whether a file has lines of a token in base 64 and its rank."""
    with file.open("rb") as opened:
        return re.match(rb"[A-Za-z0-9+/=]+ \d+\r?\n", opened.read(1 << 12)) is not None


def _by_transformers(folder: pathlib.Path) -> tokenizers.Tokenizer:
    import transformers

    try:
        loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return loaded.backend_tokenizer
    except Exception as error:  # a missing file shows as any of a dozen exceptions here
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}: no tokenizer that can be read ({reason}); put its tokenizer.json there") from error


def _sentencepiece(folder: pathlib.Path) -> tokenizers.Tokenizer:
    """The conversion of `tokenizer.model` that gives the ids of SentencePiece itself."""
    file = folder / "tokenizer.model"
    try:
        import google.protobuf  # noqa: F401  transformers reads the file with it
        import sentencepiece
    except ImportError as error:
        raise UserError(
            f"{file}: reading it needs the packages sentencepiece and protobuf: {_INSTALL}; or put tokenizer.json there"
        ) from error
    try:
        reference = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except Exception as error:  # RuntimeError, with the place in its own source
        raise UserError(f"{file}: no SentencePiece model ({error}); copy it again") from error
    core = _by_transformers(folder)
    if (probe := _difference(core, reference)) is None:
        return core
    made = _from_model(core, reference)
    if made is not None and _difference(made, reference) is None:
        return made
    raise UserError(
        f"{file}: its conversion gives other ids than sentencepiece for {probe!r}; put a tokenizer.json there that "
        "gives the model's ids"
    )


def _difference(core: tokenizers.Tokenizer, reference: Any) -> str | None:
    """The first text of which `core` makes other ids."""
    for probe in _PROBES:
        if core.encode(probe, add_special_tokens=False).ids != reference.encode(probe):
            return probe
    return None


def _from_model(core: tokenizers.Tokenizer, reference: Any) -> tokenizers.Tokenizer | None:
    """The same tokenizer with the model's own kind and normalisation, for which transformers' classes take Llama's.

    A text that follows a special token begins with a space, as every text does, whatever `legacy` says.
    """
    # Generated code, whose names no type checker sees.
    messages: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    proto = messages.ModelProto()
    proto.ParseFromString(reference.serialized_model_proto())
    trained, spec = proto.trainer_spec, proto.normalizer_spec
    if trained.model_type == 1:
        pieces = [(piece.piece, piece.score) for piece in proto.pieces]
        made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=trained.unk_id, byte_fallback=trained.byte_fallback))
    elif isinstance(core.model, models.BPE):
        made = tokenizers.Tokenizer(core.model)
    else:
        return None
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        edges, inside = (tokenizers.Regex(pattern) for pattern in (r"\A +| +\z", " {2,}"))
        steps += [normalizers.Replace(edges, ""), normalizers.Replace(inside, " ")]
    steps += [normalizers.Prepend(SPACE)] if spec.add_dummy_prefix else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    undone: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*undone, *([decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else [])])
    made.add_tokens([token for _, token in sorted(core.get_added_tokens_decoder().items())])
    if core.post_processor is not None:
        made.post_processor = core.post_processor
    return made
