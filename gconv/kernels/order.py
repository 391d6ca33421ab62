"""Node order: in which order the rows of a sparse product are computed, found while it runs, never what they hold.

A product gathers rows of x, from memory where x is larger than the cache. Rows that gather from the same places, one
after another, find them still there. Reverse Cuthill-McKee puts them so, and takes as long as some products, so it is
made as one buys what one has hired for long enough: once products on a pattern have lost as much as it costs. It is
kept where it saves a clear share of the traffic, and else the rows stay as they come, for good.

Neither x nor y moves, and the entries of a row keep their order: a schedule changes the time of a product and not a bit
of it. It hangs on the pattern's `col`, by identity, and takes 4 bytes an entry and 12 a row for as long as `col` lives.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from torch import Tensor

from gconv.caches import WeakCache
from gconv.rates import TABLES, rates

TABLE = 1 << 24  # bytes of x that may come from a cache in any order
HELD = 1 << 23  # bytes gathered last that may still be there
SAMPLES = 8  # places at which traffic is looked at
CLEAR = 0.85  # share of the traffic that an order may leave to be kept
FAR = 0.15  # share of rows from memory below which an order would leave little to gain
ENTRIES = 1 << 23  # sorted in one call of a kernel: Python answers an interrupt between two calls
compiled: Any = None  # the library of compiled kernels, once `native` has loaded it
ENTRY, ROW = 1e-7, 2e-7  # seconds of ordering, for each


@dataclass(frozen=True)
class Schedule:
    """The rows of a pattern in another order.

    Args:
        crow, col: the pattern, its rows in that order.
        place: (m,) the row of y that a slot is.
        start: (m,) where its entries begin in the pattern as it comes.
    """

    crow: np.ndarray
    col: np.ndarray
    place: np.ndarray
    start: np.ndarray

    pointers: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        held = self.crow, self.col, self.place, self.start
        object.__setattr__(self, "pointers", tuple(array.ctypes.data for array in held))


@dataclass
class State:
    """What is known of a pattern.

    Args:
        crow: of the pattern.
        paid: seconds that its products have lost.
        before, after: the shares of gathered rows that come from memory, as the rows come and by the schedule.
        schedule: the one in use.
        settled: whether all is decided.
        busy: whether some thread looks at the pattern or orders it; the others go on with the rows as they come.
    """

    crow: Any
    paid: float = 0.0
    before: float | None = None
    after: float | None = None
    schedule: Schedule | None = None
    settled: bool = False
    busy: bool = False

    def __str__(self) -> str:
        if self.before is None:
            return "as they come; another order is considered once products have lost what it costs"
        if not self.settled:
            return (
                f"as they come, {self.before:.0%} of the gathers from memory; to be ordered when that has cost enough"
            )
        if self.schedule is not None:
            return (
                f"by reverse Cuthill-McKee: {self.after:.0%} of the gathers from memory, {self.before:.0%} as they came"
            )
        tried = "" if self.after is None else f", {self.after:.0%} by reverse Cuthill-McKee"
        return f"as they come: {self.before:.0%} of the gathers from memory{tried}"


_STATES = WeakCache("row schedules")
_lock = Lock()  # held while a state is looked up, never while rows are ordered
_on = True


def _after_fork() -> None:
    global _lock
    _lock = Lock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Visit(ctypes.Structure):
    """The struct `visit` of csr_order.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("crow", "col", "crow_t", "col_t", "start", "seen", "queue")] + [
        (name, ctypes.c_int64) for name in ("rows", "nodes", "head", "tail", "begun")
    ]


@contextmanager
def automatic(on: bool) -> Iterator[None]:
    """Whether products may use and find schedules, for a while; they do otherwise.

    >>> with automatic(False):
    ...     pass  # all rows as they come
    """
    global _on
    before, _on = _on, on
    try:
        yield
    finally:
        _on = before


def known(col: Tensor) -> State | None:
    """What is known of the pattern of this `col`."""
    found: State | None = _STATES.get(col)
    return found


def find(crow: Tensor, col: Tensor, cols: int, row: int, signals: int) -> Schedule | None:
    """The schedule for a product, None for the rows as they come.

    Args:
        crow, col: the pattern, int32.
        cols: how many columns it has.
        row: bytes of a row of x.
        signals: how often it is gone through.
    """
    if cols * row < TABLE or not _on:
        return None
    with _lock:
        state = known(col)
        if state is None or (state.crow() is not crow and state.crow() is None):
            state = _STATES[col] = State(weakref.ref(crow))
        if state.crow() is not crow:  # some of the rows
            return None
        if state.settled or state.busy or not _due(state, crow, col, cols, row, signals):
            return state.schedule
        state.busy = True
    try:
        _consider(state, crow, col, cols, row)
    except BaseException:  # an interrupt is not followed by the same wait
        state.paid = 0.0
        raise
    finally:
        state.busy = False
    return state.schedule


def _price(crow: Tensor, col: Tensor, cols: int) -> float:
    return ENTRY * len(col) + ROW * (len(crow) + cols)


def _due(state: State, crow: Tensor, col: Tensor, cols: int, row: int, signals: int) -> bool:
    """Whether products have lost enough by now, this one included, that a look or an order pays."""
    state.paid += lost(float(len(col) * row * signals), float(row), float(cols * row)) * (state.before or 1.0)
    return state.paid > _price(crow, col, cols) / (16 if state.before is None else 1)


def _consider(state: State, crow: Tensor, col: Tensor, cols: int, row: int) -> None:
    """Look once that would pay for a look, order once it would pay for an order."""
    window = max(1, HELD // row)
    if state.before is None:
        state.before = traffic(col.numpy(), cols, window)
        state.settled = CLEAR * state.before < max(FAR, cols / len(col))  # each row of x is read once at least
    if not state.settled and state.paid > _price(crow, col, cols):
        made = scheduled(crow.numpy(), col.numpy(), reverse_cuthill_mckee(crow.numpy(), col.numpy(), cols))
        state.after = traffic(made.col, cols, window)
        state.schedule = made if state.after <= CLEAR * state.before else None
        state.settled = True


def lost(read: float, row: float, table: float) -> float:
    """Seconds that reading so many bytes of a table by rows takes beyond what it would if the table were near."""
    now = rates()
    return max(0.0, now.seconds("gather", read, row, table) - now.seconds("gather", read, row, TABLES["near"]))


def traffic(col: np.ndarray, cols: int, window: int) -> float:
    """The share of entries whose row of x is read for the first time in one or two windows, at some places.

    >>> traffic(np.array([0, 1, 0, 1, 0, 1, 0, 1]), 2, 2), traffic(np.arange(8), 8, 2)
    (0.0, 1.0)
    """
    window = min(window, len(col) // 2)
    if window == 0:
        return 0.0
    new = 0
    for first in np.linspace(0, len(col) - 2 * window, SAMPLES).astype(np.int64):
        seen, middle = np.zeros(cols, dtype=bool), first + window
        seen[col[first:middle]] = True
        have = np.count_nonzero(seen)
        seen[col[middle : middle + window]] = True
        new += int(np.count_nonzero(seen) - have)
    return new / (SAMPLES * window)


def reverse_cuthill_mckee(crow: np.ndarray, col: np.ndarray, cols: int) -> np.ndarray:
    """The rows so that those which share columns are near each other: (m,) int32, by the graph of rows and columns.

    Where the pattern is its own transpose, rows and columns are the same nodes, and that graph is half as large.
    """
    library, rows = compiled, len(crow) - 1
    if library is None:
        raise RuntimeError("Rows are ordered by the compiled kernels, which were not built.")
    crow, col = (np.ascontiguousarray(t, dtype=np.int32) for t in (crow, col))
    crow_t, col_t = _turned(crow, col, cols)
    symmetric = rows == cols and np.array_equal(crow, crow_t) and np.array_equal(col, col_t)
    degrees = np.diff(crow) if symmetric else np.concatenate([np.diff(crow), np.diff(crow_t)])
    start = np.argsort(np.minimum(degrees, 65535).astype(np.uint16), kind="stable")  # a radix sort
    seen, queue = np.zeros(len(degrees), np.uint8), np.empty(len(degrees), np.int64)
    held = (crow, col, None if symmetric else crow_t, None if symmetric else col_t, start, seen, queue)
    visit = Visit(*(None if t is None else t.ctypes.data for t in held), rows, len(degrees))
    while not library.gconv_order(ctypes.byref(visit), ENTRIES):
        pass  # Python answers an interrupt
    order = queue[::-1]
    return (order if symmetric else order[order < rows]).astype(np.int32)


def _turned(crow: np.ndarray, col: np.ndarray, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """The transpose of a pattern."""
    assert compiled is not None
    rows, crow_t, col_t = len(crow) - 1, np.zeros(cols + 1, np.int32), np.empty_like(col)
    crow_t[1:] = np.cumsum(np.bincount(col, minlength=cols))
    place, some = crow_t[:-1].copy(), max(1, ENTRIES * rows // max(len(col), ENTRIES))
    arrays = [t.ctypes.data for t in (crow, col, place, col_t)]
    for first in range(0, rows, some):
        compiled.gconv_turn(*arrays, first, min(rows, first + some))
    return crow_t, col_t


def scheduled(crow: np.ndarray, col: np.ndarray, place: np.ndarray) -> Schedule:
    """The pattern with its rows in this order.

    >>> made = scheduled(np.array([0, 2, 3], np.int32), np.array([5, 6, 7], np.int32), np.array([1, 0], np.int32))
    >>> made.crow, made.col, made.start
    (array([0, 1, 3], dtype=int32), array([7, 5, 6], dtype=int32), array([2, 0], dtype=int32))
    """
    lengths, start = np.diff(crow)[place], crow[:-1][place]
    pointers = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    entries = np.arange(pointers[-1], dtype=np.int32) + np.repeat(start - pointers[:-1], lengths)
    return Schedule(pointers, col[entries], place, start)
