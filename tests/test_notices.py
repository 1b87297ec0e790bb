"""Notices of other libraries that do not concern a user of chopjax."""

import subprocess
import sys

import pytest

# As on a machine without PyTorch, wherever the tests run.
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; "


@pytest.mark.parametrize(("ours", "noticed"), [("import chopjax; ", False), ("", True)])
def test_no_command_says_that_pytorch_is_missing(ours: str, noticed: bool) -> None:
    """Without the import of chopjax the notice is there, so this test notices if transformers changes its text."""
    code = WITHOUT_TORCH + ours + "import transformers"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ("PyTorch" in ended.stderr) == noticed
