"""tools/run_notebook.py: what it keeps, and that it keeps nothing of a run that failed."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import run_notebook


def run(path: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # JUPYTER_PATH leads to a kernel of the same name that does not exist.
    foreign = path.parent / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text('{"argv": ["no-such-python"], "display_name": "x", "language": "python"}')
    environment = os.environ | {"JUPYTER_PATH": str(path.parent / "jupyter")}
    command = [sys.executable, run_notebook.__file__, path, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def written(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source, id=f"cell{number}") for number, source in enumerate(sources)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python", "version": "2.7"}})
    nbformat.write(notebook, path)
    return path


def test_outputs_are_kept_and_times_and_versions_are_not(tmp_path: Path) -> None:
    path = written(tmp_path / "a.ipynb", "import os, sys\nsys.executable", "print('one')\nprint('two')", "os.getcwd()")
    folder = tmp_path / "folder"
    folder.mkdir()
    before = path.read_text()
    done = run(path, "--output", tmp_path / "b.ipynb", "--folder", folder)
    assert done.returncode == 0, done.stderr
    assert path.read_text() == before
    ran = nbformat.read(tmp_path / "b.ipynb", as_version=4)
    executable, lines, where = (cell.outputs for cell in ran.cells)
    assert executable[0].data["text/plain"] == repr(sys.executable)
    assert [line.text for line in lines] == ["one\ntwo\n"]
    assert where[0].data["text/plain"] == repr(str(folder))
    assert ran.metadata == run_notebook.METADATA
    assert not any(cell.metadata for cell in ran.cells)


def test_a_run_that_fails_leaves_the_notebook_as_it_was(tmp_path: Path) -> None:
    path = written(tmp_path / "a.ipynb", "print('fine')", "1 / 0")
    before = path.read_text()
    done = run(path)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr and "1 / 0" in done.stderr
    assert path.read_text() == before
