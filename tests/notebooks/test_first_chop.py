"""notebooks/first_chop.ipynb: it runs from top to bottom, and it is kept as it ran."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import run_notebook
from smollm2 import ROOT

NOTEBOOK = ROOT / "notebooks" / "first_chop.ipynb"
LARGEST_BYTES = 400_000

# Put behind the last cell: what the notebook found, for the test to judge.
FOUND = """
print(json.dumps({
    "quick": QUICK,
    "importance": importance.tolist(),
    "removed": sorted(set(range(source.config.layers)) - set(plan.layers)),
    "student": [student_config.layers, student_config.mlp],
    "mlp_shape": flatten(chopped)["layers/mlp/up/kernel"].shape,
    "mask_from_slice": difference,
    "losses": losses,
    "nll": nll,
    "kl": {name: figure.kl for name, figure in figures.items()},
    "findings": [str(finding) for finding in findings],
    "from_transformers": globals().get("worst"),
    "texts": texts,
    "export_is_gone": not folder.exists(),
}))
"""


def outputs(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    return [output for cell in cells for output in cell.outputs]


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def kept() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_every_cell_runs_and_finds_what_the_text_says(smollm2_folder: Path, tmp_path: Path) -> None:
    """In a process of its own, for the kernel's machinery warns of things that no test is about."""
    copy, ran = tmp_path / "copy.ipynb", tmp_path / "ran.ipynb"
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\n{FOUND}", id="found"))
    nbformat.write(notebook, copy)
    told = {"CHOPJAX_MODEL_FOLDER": str(smollm2_folder), "CHOPJAX_NOTEBOOK_QUICK": "1"}
    command = [sys.executable, run_notebook.__file__, copy, "--output", ran, "--folder", NOTEBOOK.parent]
    done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr

    cells = code_cells(nbformat.read(ran, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for output in outputs(cells) if output.get("name") == "stderr"]
    found = json.loads(cells[-1].outputs[0].text)
    assert found["quick"]
    check_what_was_found(found)


def check_what_was_found(found: dict) -> None:
    influence = found["importance"]
    assert len(influence) == 30 and all(0 < value < 2 for value in influence)
    # "The first and the last layers do the most ..., a middle block can go."
    assert max(influence[layer] for layer in found["removed"]) < min(influence[0], influence[-1]) / 3
    assert found["removed"] == [12, 13, 14, 15, 16, 17]
    assert found["student"] == [24, 1280] and found["mlp_shape"] == [24, 576, 1280]
    assert found["mask_from_slice"] < 1e-4
    nll, kl = found["nll"], found["kl"]
    assert nll["teacher"] < nll["healed"] < nll["chopped"]
    assert kl["teacher"] is None and 0 < kl["healed"] < kl["chopped"]
    assert all(0 < loss < 10 for loss in found["losses"])
    assert found["findings"] == [] and found["export_is_gone"]
    if found["from_transformers"] is not None:  # where torch is installed
        assert found["from_transformers"] < 1e-4
    assert list(found["texts"]) == ["teacher", "chopped", "healed"]
    assert "Paris" in found["texts"]["teacher"][0]
    assert found["texts"]["healed"] != found["texts"]["chopped"]


def test_it_is_kept_as_one_whole_run_left_it(kept: nbformat.NotebookNode) -> None:
    cells = code_cells(kept)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for output in outputs(cells) if output.output_type == "error" or output.get("name") == "stderr"]
    kinds = [kind for output in outputs(cells) for kind in output.get("data", {})]
    assert kinds.count("image/png") == 3 and kinds.count("image/svg+xml") == 1
    assert kept.metadata == run_notebook.METADATA
    assert not [cell.id for cell in kept.cells if cell.metadata]


def test_what_is_kept_is_small_and_names_no_folder_of_a_machine(kept: nbformat.NotebookNode) -> None:
    assert NOTEBOOK.stat().st_size < LARGEST_BYTES
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|tmp|work|usr|Users|var)/|\\\\Users", text)


def test_the_kept_run_is_the_full_one_and_healed(kept: nbformat.NotebookNode) -> None:
    text = "".join(output.get("text", "") for output in outputs(code_cells(kept)))
    tokens, closed = re.search(r"([\d,]+) tokens closed (\d+)% of the gap", text).groups()  # type: ignore[union-attr]
    assert tokens == "8,192" and int(closed) >= 40
    found = re.findall(r"(teacher|chopped|healed) .*held-out perplexity +([\d.]+)", text)
    perplexities = {name: float(value) for name, value in found}
    assert perplexities["teacher"] < perplexities["healed"] < perplexities["chopped"]
