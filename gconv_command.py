"""The command `gconv`: the file gconv/__main__.py, run without importing gconv first, so that --help needs no torch."""

import runpy
from importlib.util import find_spec
from pathlib import Path


def main() -> None:
    """Command line."""
    found = find_spec("gconv")
    assert found is not None and found.origin is not None
    runpy.run_path(str(Path(found.origin).with_name("__main__.py")), run_name="__main__")
