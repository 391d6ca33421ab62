"""Row scheduling for CSR products.

A product gathers rows of x. If x is larger than the cache, processing rows with common neighbours consecutively
(reverse Cuthill-McKee order) improves reuse. Computing that order costs as much as a few products, so it is done
lazily: once the accumulated cost of cache misses on a pattern exceeds the cost of reordering. The schedule is kept only
if it reduces memory traffic by at least 15 %; otherwise the original order is used from then on.

x and y are not permuted, and the entries of a row keep their order: a schedule changes the time of a product, but not a
bit of the result. It is cached by the identity of the pattern's `col`, and takes 4 bytes per entry and 12 per row.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import numpy as np
from torch import Tensor

from gconv.caches import WeakCache
from gconv.rates import TABLES, rates

MIN_BYTES_X = 1 << 24  # a smaller x fits in cache, and is not scheduled
WINDOW_BYTES = 1 << 23  # of rows gathered last, which may still be in cache
SAMPLES = 8  # windows in which the miss rate is estimated
MAX_REMAINING = 0.85  # maximum ratio of the miss rates with and without a schedule for the schedule to be kept
MIN_MISS_RATE = 0.15  # below which no order can save much
ENTRIES = 1 << 23  # entries per call when ordering; Python can handle interrupts between calls
compiled: Any = None  # the library of compiled kernels, set by `native`
SECONDS_PER_ENTRY, SECONDS_PER_ROW = 1e-7, 2e-7  # of computing the order


@dataclass(frozen=True)
class Schedule:
    """The rows of a pattern in another order.

    Args:
        crow, col: the pattern with its rows in that order.
        place: (m,) the original index of each row.
        start: (m,) the first entry of each row in the original pattern.
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
    """The scheduling state of a pattern.

    Args:
        crow: a weak reference to crow of the pattern.
        paid: seconds that cache misses have cost so far.
        before, after: the miss rates, as fractions of the gathered rows, in the original order and by the schedule.
        schedule: the schedule in use.
        settled: whether the decision is final.
        busy: whether a thread is working on the pattern; other threads use the original order meanwhile.
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
            return "in original order; a schedule is considered once cache misses have cost as much as it"
        if not self.settled:
            return (
                f"in original order, {self.before:.0%} of the gathers from memory; a schedule is computed once these "
                "have cost as much as it"
            )
        if self.schedule is not None:
            return (
                f"by reverse Cuthill-McKee: {self.after:.0%} of the gathers from memory, {self.before:.0%} in original "
                "order"
            )
        tried = "" if self.after is None else f", {self.after:.0%} by reverse Cuthill-McKee"
        return f"in original order: {self.before:.0%} of the gathers from memory{tried}"


_STATES = WeakCache("row schedules")
_lock = RLock()  # held while a state is looked up, never while rows are ordered; reentrant for signal handlers
_on = True


def _after_fork() -> None:
    global _lock
    _lock = RLock()  # another thread may have held it
    for state in list(_STATES.data.values()):
        state.busy = False  # the threads that were working on patterns are not in this process


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Visit(ctypes.Structure):
    """The struct `visit` of csr_order.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("crow", "col", "crow_t", "col_t", "start", "seen", "queue")] + [
        (name, ctypes.c_int64) for name in ("rows", "nodes", "head", "tail", "begun")
    ]


@contextmanager
def automatic(on: bool) -> Iterator[None]:
    """A context in which schedules are used and computed (the default), or not; it affects all threads.

    >>> with automatic(False):
    ...     pass  # products use the original order
    """
    global _on
    before, _on = _on, on
    try:
        yield
    finally:
        _on = before


def known(col: Tensor) -> State | None:
    """The scheduling state of the pattern with this `col`; None if there is none."""
    found: State | None = _STATES.get(col)
    return found


def find(crow: Tensor, col: Tensor, cols: int, row: int, signals: int) -> Schedule | None:
    """The schedule for a product; None for the original order.

    Args:
        crow, col: the pattern, int32.
        cols: number of columns.
        row: bytes of a row of x.
        signals: number of signals.
    """
    if cols * row < MIN_BYTES_X or not _on:
        return None
    mine: State | None = None
    try:
        with _lock:
            state = known(col)
            if state is None or (state.crow() is not crow and state.crow() is None):
                state = _STATES[col] = State(weakref.ref(crow))
            if state.crow() is not crow:  # a part of the rows
                return None
            if state.settled or state.busy or not _due(state, crow, col, cols, row, signals):
                return state.schedule
            mine = state
            state.busy = True
        try:
            _consider(state, crow, col, cols, row)
        except MemoryError:  # the product needs less memory than the order
            state.settled = True
        return state.schedule
    except BaseException:  # after an interrupt the next call should not start again
        if mine is not None:
            mine.paid = 0.0
        raise
    finally:
        if mine is not None:
            mine.busy = False


def _ordering_seconds(crow: Tensor, col: Tensor, cols: int) -> float:
    return SECONDS_PER_ENTRY * len(col) + SECONDS_PER_ROW * (len(crow) + cols)


def _due(state: State, crow: Tensor, col: Tensor, cols: int, row: int, signals: int) -> bool:
    """Whether cache misses, with those of this product, have cost enough to estimate the miss rate, or to reorder."""
    state.paid += miss_seconds(float(len(col) * row * signals), float(row), float(cols * row)) * (state.before or 1.0)
    return state.paid > _ordering_seconds(crow, col, cols) / (16 if state.before is None else 1)


def _consider(state: State, crow: Tensor, col: Tensor, cols: int, row: int) -> None:
    """Estimate the miss rate if it is not known, and compute the order if the misses have cost as much as that."""
    window = max(1, WINDOW_BYTES // row)
    if state.before is None:
        state.before = miss_rate(col.numpy(), cols, window)
        least = max(MIN_MISS_RATE, cols / len(col))  # each row of x is read from memory at least once
        state.settled = MAX_REMAINING * state.before < least
    if not state.settled and state.paid > _ordering_seconds(crow, col, cols):
        made = scheduled(crow.numpy(), col.numpy(), reverse_cuthill_mckee(crow.numpy(), col.numpy(), cols))
        state.after = miss_rate(made.col, cols, window)
        state.schedule = made if state.after <= MAX_REMAINING * state.before else None
        state.settled = True


def miss_seconds(read: float, row: float, table: float) -> float:
    """The additional seconds of gathering `read` bytes from a table, compared with a table that is in cache.

    Args:
        read: bytes to gather.
        row: bytes of a row.
        table: bytes of the table.
    """
    now = rates()
    return max(0.0, now.seconds("gather", read, row, table) - now.seconds("gather", read, row, TABLES["near"]))


def miss_rate(col: np.ndarray, cols: int, window: int) -> float:
    """The fraction of entries whose row of x was not read in the window before, estimated in `SAMPLES` places.

    >>> miss_rate(np.array([0, 1, 0, 1, 0, 1, 0, 1]), 2, 2), miss_rate(np.arange(8), 8, 2)
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
    """An order of the rows (m,) int32 in which rows with common columns are close, from the graph of rows and columns.

    If the pattern is its own transpose, rows and columns are the same nodes.
    """
    library, rows = compiled, len(crow) - 1
    if library is None:
        raise RuntimeError("The compiled kernels, which order the rows, were not built.")
    crow, col = (np.ascontiguousarray(t, dtype=np.int32) for t in (crow, col))
    crow_t, col_t = _transposed(crow, col, cols)
    symmetric = rows == cols and np.array_equal(crow, crow_t) and np.array_equal(col, col_t)
    degrees = np.diff(crow) if symmetric else np.concatenate([np.diff(crow), np.diff(crow_t)])
    start = np.argsort(np.minimum(degrees, 65535).astype(np.uint16), kind="stable")  # a radix sort
    seen, queue = np.zeros(len(degrees), np.uint8), np.empty(len(degrees), np.int64)
    held = (crow, col, None if symmetric else crow_t, None if symmetric else col_t, start, seen, queue)
    visit = Visit(*(None if t is None else t.ctypes.data for t in held), rows, len(degrees))
    while not library.gconv_order(ctypes.byref(visit), ENTRIES):
        pass  # Python can handle interrupts here
    order = queue[::-1]
    return (order if symmetric else order[order < rows]).astype(np.int32)


def _transposed(crow: np.ndarray, col: np.ndarray, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """The transpose of a pattern."""
    assert compiled is not None
    rows, crow_t, col_t = len(crow) - 1, np.zeros(cols + 1, np.int32), np.empty_like(col)
    crow_t[1:] = np.cumsum(np.bincount(col, minlength=cols))
    place, step = crow_t[:-1].copy(), max(1, ENTRIES * rows // max(len(col), ENTRIES))
    arrays = [t.ctypes.data for t in (crow, col, place, col_t)]
    for first in range(0, rows, step):
        compiled.gconv_turn(*arrays, first, min(rows, first + step))
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
