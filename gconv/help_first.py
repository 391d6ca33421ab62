"""`python -m gconv --help` without importing torch: Python imports the package before it runs `__main__`."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = {"gconv": "__main__.py", "gconv.calibrate": "calibrate/__main__.py"}


def print_help(argv: Sequence[str]) -> None:
    """Run the command line if it was asked for help, which ends the process; otherwise do nothing.

    Args:
        argv: the command line of the interpreter, `sys.orig_argv`.
    """
    at = argv.index("-m") if "-m" in argv else len(argv)
    words = list(argv[at + 1 :])
    if words and words[0] in COMMANDS:
        sys.argv = words
        runpy.run_path(str(Path(__file__).parent / COMMANDS[words[0]]), run_name="__main__")
