"""Interrupts and signal handlers at any moment: no lock, count or mark of a pattern is left behind."""

import inspect
import os
import signal
import sys
import threading
from contextlib import contextmanager

import pytest
import torch
from limits import forked, joined, started

from gconv.kernels import CSR, memory, native, order, portable, spmm, transforms

NEEDS_KERNELS = pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def answering(code):
    """The lines of a function at which a signal may be answered: those that call something, if not in a `finally`.

    A tracer, which stands for the signal here, is called at `with` and `try`, too: before a lock is released.
    """
    source, start = inspect.getsourcelines(code)
    end = next((k for k in range(len(source) - 1, 0, -1) if source[k].strip() == "finally:"), len(source))
    return {start + k for k in range(end) if not source[k].strip().startswith(("with ", "try:"))}


def interrupted_at(number, run, *codes):
    """Whether an interrupt came at the `number`-th line that these functions run."""
    lines, at = 0, {code: answering(code) for code in codes}

    def at_line(frame, event, _):
        nonlocal lines
        if frame.f_code not in at:
            return None
        if event == "line" and frame.f_lineno in at[frame.f_code]:
            lines += 1
            if lines == number:
                raise KeyboardInterrupt
        return at_line

    before = sys.gettrace()
    sys.settrace(at_line)
    try:
        run()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def at_every_line(run, check, *codes):
    """`check` after an interrupt of `run` at each line of these functions in turn; returns the number of lines."""
    number = 1
    while interrupted_at(number, run, *codes):
        check(number)
        number += 1
    return number - 1


@pytest.fixture
def always(monkeypatch):
    """Every product considers an order of its rows."""
    monkeypatch.setattr(order, "MIN_BYTES_X", 0)
    monkeypatch.setattr(order, "miss_seconds", lambda *read: 1e9)


def pattern(n=60, entries=500):
    return CSR.build(*torch.randint(n, (2, entries)), n, n)


@NEEDS_KERNELS
@pytest.mark.usefixtures("always")
def test_an_interrupted_ordering_leaves_no_state(monkeypatch):
    csr = pattern()
    monkeypatch.setattr(order, "miss_rate", lambda *_: 1e9)
    values, x = torch.ones(len(csr.col)), torch.randn(60, 8)
    with order.automatic(False):
        want = spmm(csr, values, x)

    def run():
        order._STATES.pop(csr.col, None)
        spmm(csr, values, x)

    def check(number):
        state = order.known(csr.col)
        assert state is None or not state.busy, number
        assert not order._lock._is_owned(), number
        assert torch.equal(spmm(csr, values, x), want), number

    codes = order.find.__code__, order._consider.__code__, order.reverse_cuthill_mckee.__code__
    assert at_every_line(run, check, *codes) > 20


def test_a_mark_that_is_set_before_the_block_that_resets_it_is_left_behind():
    """Negative control: the search above finds it."""
    marks = set()

    def run():
        marks.clear()
        marks.add("busy")
        len(marks)
        try:
            marks.add("more")
        finally:
            marks.clear()

    found = []
    at_every_line(run, lambda number: found.append(bool(marks)), run.__code__)
    assert any(found)


class Interrupting:
    """A lock; an interrupt comes right after it is released for the first time, which is when Python answers one."""

    def __init__(self):
        self.held, self.left = False, 0

    def __enter__(self):
        self.held = True

    def __exit__(self, *_):
        self.held, self.left = False, self.left + 1
        if self.left == 1:
            raise KeyboardInterrupt


@contextmanager
def counted_before():
    """As `portable`, but counted before the block that counts back (negative control)."""
    with transforms._COUNT:
        transforms._portable_calls += 1
    try:
        yield
    finally:
        with transforms._COUNT:
            transforms._portable_calls -= 1


@pytest.mark.parametrize(("block", "left"), [(portable, 0), (counted_before, 1)])
def test_an_interrupt_of_a_portable_block_leaves_the_counts(block, left, monkeypatch):
    monkeypatch.setattr(transforms, "_COUNT", Interrupting())
    monkeypatch.setattr(transforms, "_portable_calls", 0)
    with pytest.raises(KeyboardInterrupt), block():
        pass
    assert (transforms._portable_calls, transforms._LOCAL.portable) == (left, 0) and not transforms._COUNT.held


@NEEDS_KERNELS
@pytest.mark.usefixtures("always")
def test_an_interrupt_right_after_a_pattern_is_marked(monkeypatch):
    csr = pattern()
    values, x = torch.ones(len(csr.col)), torch.randn(60, 8)
    monkeypatch.setattr(order, "_lock", Interrupting())
    with pytest.raises(KeyboardInterrupt):
        spmm(csr, values, x)
    assert not order.known(csr.col).busy and not order.known(csr.col).settled and not order._lock.held
    spmm(csr, values, x)
    assert order.known(csr.col).settled


@NEEDS_KERNELS
@pytest.mark.usefixtures("always")
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there are no such signals here")
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_signal_handler_may_run_a_product_while_a_product_is_prepared(reentrant, monkeypatch):
    """With a lock that is not reentrant the handler waits for ever (negative control)."""
    csr, due, ran = pattern(), order._due, []
    values, x = torch.ones(len(csr.col)), torch.randn(60, 8)
    if not reentrant:
        monkeypatch.setattr(order, "_lock", threading.Lock())

    def handle(*_):
        monkeypatch.setattr(order, "_due", due)
        ran.append(order._lock.acquire(timeout=0.2))
        if ran[0]:
            order._lock.release()
            spmm(csr, values, x)

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGUSR1)
        return due(*arguments)

    monkeypatch.setattr(order, "_due", interrupted)
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        spmm(csr, values, x)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ran == [reentrant] and not order.known(csr.col).busy


@NEEDS_FORK
@NEEDS_KERNELS
@pytest.mark.usefixtures("always")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_fork_while_another_thread_is_in_the_middle(monkeypatch):
    """In the child no lock is held, no block is active and no thread works on a pattern."""
    csr, began, done = pattern(), threading.Event(), threading.Event()
    values, x = torch.ones(len(csr.col)), torch.randn(60, 8)
    monkeypatch.setattr(order, "miss_rate", lambda *_: began.set() or (done.wait(60) and 1.0))

    def product():
        with portable():
            held.set()
            done.wait(60)

    def hold():
        with transforms._COUNT, order._lock, memory._lock:
            held.set()
            done.wait(60)

    def in_the_fork():
        signal.alarm(20)
        locks = [lock.acquire(timeout=1) for lock in (transforms._COUNT, order._lock, memory._lock)]
        with portable():
            pass
        return 7 if all(locks) and not transforms._portable_calls and not order.known(csr.col).busy else 8

    threads = [started(spmm, csr, values, x)]
    assert began.wait(60) and order.known(csr.col).busy
    for run in (product, hold):
        held = threading.Event()
        threads.append(started(run))
        assert held.wait(60)
    assert transforms._portable_calls == 1
    try:
        assert forked(in_the_fork) == 7
    finally:
        done.set()
        joined(threads)
    assert transforms._portable_calls == 0


@NEEDS_KERNELS
@pytest.mark.usefixtures("always")
def test_without_memory_for_an_ordering_the_product_runs(monkeypatch):
    csr = pattern()
    values, x = torch.ones(len(csr.col)), torch.randn(60, 8)
    with order.automatic(False):
        want = spmm(csr, values, x)

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(order, "miss_rate", fail)
    assert torch.equal(spmm(csr, values, x), want)
    assert order.known(csr.col).settled and order.known(csr.col).schedule is None and not order.known(csr.col).busy
