"""`python -m gconv --help` without importing torch: Python imports the package before it runs `__main__`."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def print_help(argv: Sequence[str]) -> None:
    """Run the command line now if it is asked for help, which ends the process; otherwise do nothing.

    The commands with options of their own (calibrate, propagate) need the package.

    Args:
        argv: as the interpreter got it, `sys.orig_argv`.
    """
    at = argv.index("-m") if "-m" in argv else len(argv)
    words = list(argv[at + 1 :])
    if words[:1] == ["gconv"] and words[1] not in ("calibrate", "propagate"):
        sys.argv = ["gconv", *words[1:]]
        runpy.run_path(str(Path(__file__).with_name("__main__.py")), run_name="__main__")
