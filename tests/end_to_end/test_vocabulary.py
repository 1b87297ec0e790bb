"""A trimmed vocabulary through the whole flow: rows in the student's own tokens, a teacher over the same words."""

import json
import pathlib
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from end_to_end import runs

from chopjax.chop.plan import Plan
from chopjax.commands import cli, heal, score
from chopjax.commands.run import Run
from chopjax.data.manifest import open_prepared
from chopjax.data.tokenize import load_tokenizer
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.reading import load_params
from chopjax.hf.trimmed import named_ids, read_tokenizer
from chopjax.hf.vocabulary import choose_words
from chopjax.models.decoder import forward, logits

SIZE = 283  # of 300 tokens and 307 rows, a size that pads to nothing even


@pytest.fixture(scope="module")
def kept(place: runs.Place) -> np.ndarray:
    """The words of some of the text."""
    core = tokenizers.Tokenizer.from_file(str(place.source / "tokenizer.json"))
    text = (place.folder / "text.jsonl").read_text(encoding="utf-8")[-2000:]
    counts = np.bincount(core.encode(text).ids, minlength=runs.MODEL.vocab)
    return choose_words(counts, read_tokenizer(place.source), SIZE, named_ids(place.source, runs.MODEL.vocab))


@pytest.fixture(scope="module")
def workdir(place: runs.Place, kept: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run that cuts nothing but words. Read only."""
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "plan.json").write_text(Plan(dict(runs.MODEL.sizes), {"vocab": kept}).to_json())
    overrides = (f"plan.file={folder}/plan.json", "plan.remove_layers=0", "plan.mlp=0", "evaluate.window=12")
    ended = runs.done(place, "train", place.arguments(folder / "run", *overrides))
    assert "warning" not in ended.stdout
    return folder / "run"


def read(file: pathlib.Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def our_logits(folder: pathlib.Path, tokens: np.ndarray) -> np.ndarray:
    model = open_checkpoint(folder)
    params = load_params(model)
    return np.asarray(logits(model.config, params, forward(model.config, params, jnp.asarray(tokens)).hidden))


def stock_logits(folder: pathlib.Path, tokens: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own
        return AutoModelForCausalLM.from_pretrained(folder)(torch.from_numpy(tokens).long()).logits.numpy()


@pytest.mark.parametrize("of", [our_logits, stock_logits], ids=["ours", "stock"])
def test_the_chopped_model_is_the_source_on_the_kept_words(
    of: object, place: runs.Place, workdir: pathlib.Path, kept: np.ndarray
) -> None:
    assert callable(of)
    tokens = np.random.default_rng(5).integers(0, SIZE, (2, 11)).astype(np.int32)
    whole = of(place.source, kept[tokens])[..., kept]
    part = of(workdir / "student", tokens)
    assert part.shape == (2, 11, SIZE)
    np.testing.assert_allclose(part, whole, atol=1e-5 * np.abs(whole).max())


def test_stock_transformers_loads_the_export(workdir: pathlib.Path, place: runs.Place, kept: np.ndarray) -> None:
    tokens = np.random.default_rng(6).integers(0, SIZE, (2, 11)).astype(np.int32)
    reference = stock_logits(workdir / "export", tokens)
    np.testing.assert_allclose(our_logits(workdir / "export", tokens), reference, atol=1e-4 * np.abs(reference).max())
    from transformers import AutoTokenizer

    whole, part = AutoTokenizer.from_pretrained(place.source), AutoTokenizer.from_pretrained(workdir / "export")
    text = "Überall the heron 👩‍🚀"
    assert len(part) == SIZE and part.decode(part.encode(text)) == whole.decode(whole.encode(text)) == text
    config, before = read(workdir / "export" / "config.json"), read(place.source / "config.json")
    for name in ("bos_token_id", "eos_token_id"):
        assert kept[config[name]] == before[name]
    assert config["vocab_size"] == SIZE
    assert (workdir / "export" / "tokenizer.json").read_bytes() == (workdir / "student" / "tokenizer.json").read_bytes()
    assert f"the tokenizer has {SIZE} of the source's 300 tokens" in (workdir / "export" / "README.md").read_text()


def test_rows_are_in_the_student_s_own_tokens(workdir: pathlib.Path, place: runs.Place) -> None:
    before, after = open_prepared(workdir / "rows"), open_prepared(workdir / "student_rows")
    assert after.max_token < SIZE <= before.max_token
    documents = [[part.documents for part in manifest.parts] for manifest in (before, after)]
    assert documents[0] == documents[1]
    assert after.total("tokens", "train") > before.total("tokens", "train")
    # The same text, if other tokens: that of the first held-out row.
    texts = []
    for folder, manifest in ((place.source, before), (workdir / "student", after)):
        row = next(iter(manifest.heldout().values()))[0]
        texts.append(load_tokenizer(folder).decode(row["tokens"][row["segment_ids"] == 1].tolist()))
    shortest = min(map(len, texts))
    assert shortest > 20 and texts[0][:shortest] == texts[1][:shortest]


def test_the_teacher_is_renormalised_over_the_kept_words(workdir: pathlib.Path) -> None:
    # Nothing but words is cut, so before the first step the student is the teacher over those words.
    first = runs.metrics(workdir)[0]
    assert abs(first["kl"]) < 1e-5
    figures = read(workdir / "evaluation.json")
    teacher, chopped = figures["teacher"], figures["chopped"]
    assert abs(chopped["kl"]) < 1e-5
    for name in ("nll", "tokens", "rolling_perplexity"):
        assert chopped[name] == pytest.approx(teacher[name], rel=1e-5)
    assert figures["healed"]["kl"] > 0
    assert figures["healed"]["nll"] == pytest.approx(runs.metrics(workdir)[-1]["heldout_loss"], rel=1e-5)
    samples = json.loads((workdir / "samples.json").read_text())[0]
    assert samples["teacher"] == samples["chopped"]


def test_a_plan_with_other_words_makes_other_rows(place: runs.Place, tmp_path: pathlib.Path) -> None:
    def prepared(size: int) -> Run:
        arguments = place.arguments(tmp_path / "run", f"plan.vocab={size}")
        runs.done(place, "chop", arguments)
        run = Run(cli.parse(["chop", *arguments]))
        rows = run.student_data
        assert rows.max_token < size and rows.tokenizer == run.student_tokenizer.digest != run.tokenizer.digest
        return run

    first, second = prepared(SIZE), prepared(270)
    assert heal.identity(first)["tokenizer"] != heal.identity(second)["tokenizer"]
    counts = score.read(second).sums["words"].sum(0)
    named = named_ids(place.source, runs.MODEL.vocab)
    chosen = choose_words(counts, read_tokenizer(place.source), 270, named)
    np.testing.assert_array_equal(second.plan.kept["vocab"], chosen)
    assert (chosen != np.arange(270)).any()


def test_later_rounds_have_the_teacher_s_words_that_are_left(place: runs.Place, tmp_path: pathlib.Path) -> None:
    changes = (
        {"plan.vocab": SIZE, "plan.remove_layers": 0, "plan.mlp": 0, "train.steps": 1, "train.warmup_steps": 0},
        {"plan.vocab": 270, "plan.remove_layers": 0, "plan.mlp": 0, "train.steps": 1, "train.warmup_steps": 0},
    )
    recipe = place.folder / "trimming.py"
    settings = f"config.rounds = {changes!r}; config.train.learning_rate = 1e-9; config.evaluate.prompts = ()"
    added = f"    {settings}\n    return config\n"
    recipe.write_text(place.recipe.read_text().replace("    return config\n", added))
    runs.done(place, "train", [f"--config={recipe}", f"--config.workdir={tmp_path}/run"])
    # Hardly anything is learnt, so the second student is still the source over the words of both rounds.
    last = read(tmp_path / "run" / "round-2" / "evaluation.json")
    assert abs(last["chopped"]["kl"]) < 1e-4
    assert last["chopped"]["nll"] == pytest.approx(last["teacher"]["nll"], rel=1e-4)
    assert open_checkpoint(tmp_path / "run" / "export").config.vocab == 270


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("train.steps_before_chop=2",), "train.steps_before_chop: rows before and after a trimmed vocabulary would "),
        (
            ("data.sources=()", "data.rows=ROWS"),
            "data.sources is empty, but a trimmed vocabulary needs the text itself",
        ),
        (("plan.refit=True",), "plan.refit: the fit compares the chopped model with the source on the same tokens"),
        (("plan.vocab=257",), "plan.vocab: keeps 257 rows, but 258 must stay"),
    ],
)
def test_what_a_trimmed_vocabulary_cannot_have(
    overrides: tuple[str, ...], said: str, place: runs.Place, chopped: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    overrides = tuple(setting.replace("ROWS", str(chopped / "rows")) for setting in overrides)
    ended = runs.run(place, "train", place.arguments(tmp_path / "run", f"plan.vocab={SIZE}", *overrides))
    assert ended.status == 2 and said in ended.stderr and ended.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
