"""`python -m gconv.calibrate`, and `python -m gconv calibrate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ABOUT = """Measure how fast this machine computes, so that gconv predicts times well and chooses the fastest algorithm.

It takes a minute or so; do not run other programs meanwhile. The results are stored in a file, which a process
reads once: restart those that run. Without the file, layers use built-in rates; they may then choose a slower
algorithm, with the same results up to rounding.
"""
EXAMPLES = """examples:
  python -m gconv.calibrate                     measure the CPU for the number of threads that torch uses here
  OMP_NUM_THREADS=1 python -m gconv.calibrate   also for one thread; other numbers of threads are kept in the file
  python -m gconv.calibrate --device cuda       also a GPU, for the layers that run there
  python -m gconv.calibrate --show              print the rates that plans use now, and where they come from

file:
  gconv/calibration.json in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache); $GCONV_CALIBRATION names another
  one, for example if the home folder cannot be written. To return to the built-in rates, delete it.
"""


def _bar(share: float, text: str) -> None:
    """Print a progress bar over the current line."""
    done = round(30 * share)
    print(f"\rmeasuring [{'#' * done}{' ' * (30 - done)}] {text:40.40s}", end="", file=sys.stderr, flush=True)
    if share == 1:
        print(file=sys.stderr)


def _or_end(run: Callable[[], Path]) -> Path:
    """The result of `run`, or one sentence that says why the calibration cannot be written."""
    from gconv import rates

    try:
        return run()
    except OSError as error:
        place = rates.path() or "the calibration"
        sys.exit(f"error: cannot write {place}: {error.strerror or error}; GCONV_CALIBRATION=path names another file")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m gconv.calibrate", None, ABOUT, EXAMPLES, formatter_class=form)
    parser.add_argument("--show", action="store_true", help="do not measure, print the rates that plans use")
    parser.add_argument("--device", default="cpu", help="what is measured: cpu, cuda, cuda:1, xpu ... (cpu)")
    given = parser.parse_args(argv)
    from gconv import calibrate, rates  # after the parser, so that --help needs no torch

    try:
        (calibrate.device_kind if given.show else calibrate.usable)(given.device)
    except ValueError as error:
        parser.error(f"argument --device: {error}")
    if given.show:
        print(calibrate.table(rates.rates(given.device.split(":")[0]), given.device))
        return
    _or_end(calibrate.prepared)  # before anyone waits for a result that cannot be written
    found = calibrate.measure(_bar, given.device)
    print(calibrate.table(found, given.device))
    print(f"stored in {_or_end(lambda: calibrate.store(found, given.device))}")


if __name__ == "__main__":
    main()
