"""`python -m gconv.calibrate`, and `python -m gconv calibrate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def _bar(share: float, text: str) -> None:
    """Print a progress bar over the current line."""
    done = round(30 * share)
    print(f"\rmeasuring [{'#' * done}{' ' * (30 - done)}] {text:40.40s}", end="", file=sys.stderr, flush=True)
    if share == 1:
        print(file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m gconv.calibrate", description="Measure this machine for plans.")
    parser.add_argument("--show", action="store_true", help="do not measure, print the rates that plans use")
    parser.add_argument("--device", default="cpu", help="what is measured: cpu, cuda, cuda:1 ... (cpu)")
    given = parser.parse_args(argv)
    from gconv import calibrate, rates  # after the parser, so that --help needs no torch

    try:
        (calibrate.device_kind if given.show else calibrate.usable)(given.device)
    except ValueError as error:
        parser.error(f"argument --device: {error}")
    if given.show:
        print(calibrate.table(rates.rates(given.device.split(":")[0]), given.device))
        return
    found = calibrate.measure(_bar, given.device)
    try:
        where = calibrate.store(found, given.device)
    except OSError as error:
        place = rates.path() or "the calibration"
        sys.exit(f"error: cannot write {place}: {error.strerror or error}; GCONV_CALIBRATION=path names another file")
    print(calibrate.table(found, given.device))
    print(f"stored in {where}")


if __name__ == "__main__":
    main()
