"""Several threads at once, on shared graphs and on their own, first calls included; and forked processes."""

import copy
import os
import subprocess
import sys
import threading

import pytest
import torch
from limits import LIMIT, forked, joined, started

from gconv import GConv, Graph
from gconv.basis import shifts
from gconv.kernels import CSR, memory, native, order, spmm
from gconv.lowering import fixed
from gconv.operators import avg_pool2d, cheb, conv2d, gat, gcn, sage
from gconv.testing import assert_close


def together(run, count=4):
    """`run(number)` in so many threads at once; what one of them raises is raised."""
    start, errors = threading.Barrier(count), []

    def one(number):
        start.wait(LIMIT)
        try:
            run(number)
        except BaseException as error:
            errors.append(error)

    joined([started(one, number) for number in range(count)])
    if errors:
        raise errors[0]


def test_layers_on_shared_and_own_graphs():
    generator = torch.Generator().manual_seed(0)
    index, n = torch.randint(40, (2, 200), generator=generator), 40
    layers = [GConv(spec) for spec in (gcn(3, 4), cheb(3, 4, k=3), sage(3, 4), gat(3, 4))]
    x = torch.randn(n, 3, generator=generator)
    want = [layer(x, Graph(index.clone(), n)).detach() for layer in layers]
    shared = Graph(index, n)

    def run(number):
        for _ in range(3):
            for layer, right in zip(layers, want, strict=True):
                for graph in (shared, Graph(index.clone(), n), index):
                    assert_close("shared", layer(x, graph).detach(), right, 1e-6)

    together(run)


def test_layers_on_grids_while_caches_are_emptied(monkeypatch):
    monkeypatch.setattr(shifts._TAPS, "bound", 1)
    monkeypatch.setattr("gconv.module.MAX_SHAPES", 1)
    layers = [GConv(conv2d(2, 3, 3, padding=1)), GConv(avg_pool2d(2))]

    def run(number):
        for size in (*range(4, 10), *range(4, 10)):
            images = torch.ones(1, 2, size + number % 2, size)
            for layer in layers:
                for lowering in (None, "sparse"):
                    assert layer(images, lowering=lowering).isfinite().all()

    together(run)


@pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
def test_no_lock_is_held_while_rows_are_ordered(monkeypatch):
    """Other threads go on with the rows as they come; an interrupted reordering leaves nothing behind."""
    monkeypatch.setattr(order, "MIN_BYTES_X", 0)
    monkeypatch.setattr(order, "miss_seconds", lambda *read: 1e9)
    csr = CSR.build(*torch.randint(50, (2, 400)), 50, 50)
    values, x, began, done = torch.ones(len(csr.col)), torch.ones(50, 8), threading.Event(), threading.Event()
    make = order.reverse_cuthill_mckee

    def slow(*arguments):
        began.set()
        assert done.wait(60)
        return make(*arguments)

    monkeypatch.setattr(order, "reverse_cuthill_mckee", slow)
    monkeypatch.setattr(order, "MAX_REMAINING", 2.0)
    monkeypatch.setattr(order, "MIN_MISS_RATE", 0.0)
    monkeypatch.setattr(order, "miss_rate", lambda *_: 1e9)
    thread = started(spmm, csr, values, x)
    assert began.wait(60)
    y = spmm(csr, values, x)  # would wait for ever, were the lock held
    assert order.known(csr.col).busy and not order.known(csr.col).settled
    done.set()
    joined([thread])
    assert order.known(csr.col).settled and torch.equal(spmm(csr, values, x), y)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(order, "reverse_cuthill_mckee", interrupted)
    other = CSR.build(*torch.randint(50, (2, 400)), 50, 50)
    with pytest.raises(KeyboardInterrupt):
        spmm(other, values, x)
    assert not order.known(other.col).busy and order.known(other.col).paid == 0.0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_fork_while_locks_are_held_and_threads_have_run():
    graph = Graph(torch.randint(600, (2, 9000)), 600)
    layer, x, before = GConv(gcn(16, 16)), torch.randn(600, 16), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        want = layer(x, graph)
        held, let_go = threading.Event(), threading.Event()

        def hold():
            with order._lock, memory._lock:
                held.set()
                let_go.wait(60)

        def in_the_fork():
            memory.release()
            with order._lock:
                return native.threads_for(1 << 30)

        thread = started(hold)
        assert held.wait(60)
        code = forked(in_the_fork)
        let_go.set()
        joined([thread])
        assert code == 1, "one thread"
        assert torch.equal(layer(x, graph), want)
    finally:
        torch.set_num_threads(before)


def test_the_accumulators_of_parameters_exist_before_an_autograd_function_gets_them(monkeypatch):
    """torch creates a leaf's accumulator under a lock for which two threads could wait forever: see the next test.

    This holds whether or not another thread has been started, so that one which comes at any moment is safe.
    """
    given = []

    def alive(p):
        with torch.enable_grad():
            before = p._use_count()
            node = p.view_as(p).grad_fn.next_functions[0][0]  # an accumulator, which holds a reference to p
            return node.variable is p and p._use_count() == before

    def apply(x, W, bias, plan):
        given.append([alive(p) for p in (layer.weight, layer.bias)])
        return x @ W[0] + bias

    monkeypatch.setattr(fixed.Mixed, "apply", apply)
    layer, x, index = GConv(gcn(2, 3)), torch.ones(3, 2), torch.tensor([[0, 1], [1, 2]])
    given.append([alive(p) for p in (layer.weight, layer.bias)])  # negative control: before any call
    for _ in range(2):
        layer(x, index, lowering="sparse").sum().backward()
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    layer(x, index, lowering="sparse")
    layer.double(), layer.float()
    layer(x, index, lowering="sparse")
    layer.requires_grad_(False), layer(x, index), layer.requires_grad_(True)
    layer(x, index, lowering="sparse")
    assert given == [[False, False], *[[True, True]] * 5]
    assert layer.weight.grad is None and layer.bias.grad is not None
    copied = copy.deepcopy(layer)
    assert not alive(copied.weight), "a copy does not keep the accumulators of the original"


HANG = """
import sys, threading, torch
from gconv import GConv, Graph
from gconv.operators import gcn, gat

class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p):
        return 2 * p

    @staticmethod
    def backward(ctx, g):
        return 2 * g

sys.setswitchinterval(1e-6)
own, x, graph = sys.argv[1] == "gconv", torch.ones(3, 2), Graph(torch.tensor([[0, 1], [1, 2]]), 3)
for number in range(int(sys.argv[2])):
    layer = GConv((gcn, gat)[number % 2](2, 3))  # whose accumulators do not exist yet
    start = threading.Barrier(2)

    def one(first):
        start.wait()
        for _ in range(20):
            if own:
                layer(x, graph)
            elif first:
                Twice.apply(layer.weight)
            else:
                layer.weight.view_as(layer.weight)

    late = [threading.Thread(target=one, args=(first,)) for first in (True, False)]
    for thread in late:
        thread.start()
    for thread in late:
        thread.join()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("who", "rounds"), [("gconv", 300), ("torch", 100_000)])
def test_threads_that_share_a_new_layer_do_not_block_each_other(who, rounds):
    """With torch's own functions they do (negative control)."""
    command = [sys.executable, "-c", HANG, who, str(rounds)]
    if who == "torch":
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run(command, timeout=30)
    else:
        subprocess.run(command, timeout=100, check=True)
