"""One tiny model, text and recipe for all runs."""

import pathlib
import shutil

import pytest
from end_to_end import runs
from end_to_end.flows import CUT


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> runs.Place:
    """Read only."""
    return runs.Place.make(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="session")
def chopped(place: runs.Place, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A workdir in which everything before training is done; copy it."""
    workdir = tmp_path_factory.mktemp("chopped") / "run"
    runs.done(place, "chop", place.arguments(workdir))
    return workdir


@pytest.fixture
def copied(chopped: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of it."""
    return pathlib.Path(shutil.copytree(chopped, tmp_path / "run"))


@pytest.fixture(scope="session")
def whole(place: runs.Place, chopped: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of a run that was never cut off; read only."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(chopped, workdir)
    runs.done(place, "heal", place.arguments(workdir))
    return workdir


@pytest.fixture(scope="session")
def narrow(place: runs.Place, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A workdir with a student of fewer layers, channels and neurons, not trained yet; copy it."""
    workdir = tmp_path_factory.mktemp("narrow") / "run"
    runs.done(place, "chop", place.arguments(workdir, *CUT))
    return workdir
