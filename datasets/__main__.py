"""Load a data set and print what it is: `python -m datasets cora --data-root ~/data`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Annotated

import tyro

from . import NAMES, DataError, load


@dataclass(frozen=True)
class Options:
    """Load a data set and print its shapes, classes, content hash and source."""

    name: Annotated[str, tyro.conf.Positional] = ""
    """Which one; none lists the names."""
    data_root: str | None = None
    """Where data lives (default: $GCONV_DATA, else the user's cache folder)."""


def main() -> int:
    """Parse, load, print; 0 if it worked, 1 with one message if the data is not there or not sound."""
    options = tyro.cli(Options, prog="python -m datasets")
    if not options.name:
        print("\n".join(NAMES))
        return 0
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack the letters of a path or a name
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
