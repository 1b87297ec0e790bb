"""Run a notebook from top to bottom and keep what it shows.

    python tools/run_notebook.py notebooks/first_chop.ipynb

The kernel is the Python that runs this script, whatever kernels Jupyter finds elsewhere. Nothing is written unless
every cell runs. Times and versions, which differ from run to run without meaning anything, are left out.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from chopjax.errors import UserError
from chopjax.files import write_text

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Executes all cells, whose outputs replace those in `notebook`, with `folder` as the working directory.

    Raises:
        UserError: a cell failed; the text holds its traceback.
    """
    # With no folders to look in, "python3" is made from this interpreter.
    specs = KernelSpecManager(kernel_dirs=[])
    client = nbclient.NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs, transport_encryption="auto"),
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute(cleanup_kc=True)
    except nbclient.exceptions.CellExecutionError as error:
        raise UserError(str(error)) from None
    notebook.metadata = nbformat.from_dict(METADATA)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a notebook and keep what it shows.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--output", type=Path, help="where to write it; over itself if left out")
    parser.add_argument("--folder", type=Path, help="working directory; the notebook's own if left out")
    chosen = parser.parse_args()
    notebook = nbformat.read(chosen.notebook, as_version=4)
    with tempfile.TemporaryDirectory() as scratch:
        # Connection files and history: nothing is left in, or read from, the home directory.
        os.environ |= {"JUPYTER_RUNTIME_DIR": scratch, "IPYTHONDIR": scratch}
        try:
            run(notebook, chosen.folder or chosen.notebook.parent)
        except UserError as error:
            print(f"run_notebook: {chosen.notebook}: {error}", file=sys.stderr)
            return 1
    write_text(chosen.output or chosen.notebook, nbformat.writes(notebook) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
