"""The pictures as PNG files."""

import os
import pathlib

from chopjax import folders, paths
from chopjax.report import canvas
from chopjax.report.pictures import catalog
from chopjax.report.run import Run


def write_pictures(folder: str | os.PathLike[str], run: Run) -> list[pathlib.Path]:
    """Writes NAME.png for each picture that the run has figures for, in a folder that appears whole or not at all.

    What the folder held before is gone; it is empty where nothing was measured.

    Returns:
        the files, in the order of the page.
    """
    folder = paths.make(folder)
    names = []
    with folders.written_whole(folder) as beside:
        for picture in catalog.every(run):
            names.append(f"{picture.name}.png")
            (beside / names[-1]).write_bytes(canvas.png(picture))
    return [folder / name for name in names]
