"""Load a data set and describe it: `python -m datasets cora --data-root ~/data`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Options:
    """Load a data set and print its shapes, classes, content hash and source."""

    name: Annotated[str, tyro.conf.Positional] = ""
    """Name of the data set; without it, the names are listed."""
    data_root: str | None = None
    """Data root (default: $GCONV_DATA, else the user's cache folder)."""


def main() -> int:
    """Command line. Returns: 0, or 1 with a message if the data is missing or damaged."""
    options = tyro.cli(Options, prog="python -m datasets")
    from datasets import NAMES, DataError, load  # after the parser, so that --help needs no torch

    if not options.name:
        print("\n".join(NAMES))
        return 0
    for stream in (sys.stdout, sys.stderr):  # the terminal may not support all characters of a path or name
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        text = load(options.name, options.data_root).summary()
    except (DataError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
