"""Progress inside a run: what the training loop reports, and where that goes."""

import sys
import time
from collections.abc import Callable

Sink = Callable[[float, str, bool], None]
_started: list[tuple[float, float]] = []  # when this run reported first, and how far it was


def _print(done: float, text: str, whole: bool) -> None:
    if whole or sys.stderr.isatty():
        print(text, end="\n" if whole else "\r", file=sys.stderr, flush=True)


_sink: Sink = _print


def begin(sink: Sink = _print) -> None:
    """Send the reports of the run that starts now to `sink(share done, text, whether an epoch ended)`."""
    global _sink
    _sink = sink
    _started.clear()


def report(done: float, text: str, whole: bool = True) -> None:
    """Say how far the run is.

    Args:
        done: share of the run in [0, 1].
        text: such as "epoch 3/8, loss 0.512"; the time left is added.
        whole: whether an epoch has ended; only those are printed where there is no terminal.
    """
    now = time.monotonic()
    if not _started:
        _started.append((now, done))
    start, first = _started[0]
    if done > first and done < 1:
        left = (now - start) * (1 - done) / (done - first)
        text += f", {left / 60:.0f} min left" if left >= 90 else f", {left:.0f} s left"
    _sink(done, text, whole)
