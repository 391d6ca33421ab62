"""Progress reports of training loops."""

import sys
import time
from collections.abc import Callable

Sink = Callable[[float, str, bool], None]
_started: list[tuple[float, float]] = []  # time and progress of the first report of this run


def _print(done: float, text: str, whole: bool) -> None:
    if whole or sys.stderr.isatty():
        print(text, end="\n" if whole else "\r", file=sys.stderr, flush=True)


_sink: Sink = _print


def begin(sink: Sink = _print) -> None:
    """Send the reports of the run that starts now to `sink(fraction done, text, whether an epoch ended)`."""
    global _sink
    _sink = sink
    _started.clear()


def report(done: float, text: str, whole: bool = True) -> None:
    """Report the progress of the run.

    Args:
        done: fraction of the run, in [0, 1].
        text: for example "epoch 3/8, loss 0.512"; the remaining time is added.
        whole: whether an epoch has ended; without a terminal, only these reports are printed.
    """
    now = time.monotonic()
    if not _started:
        _started.append((now, done))
    start, first = _started[0]
    if done > first and done < 1:
        left = (now - start) * (1 - done) / (done - first)
        text += f", {left / 60:.0f} min left" if left >= 90 else f", {left:.0f} s left"
    _sink(done, text, whole)
