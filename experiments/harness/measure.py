"""Compares implementations of one computation: check that results agree, then time them in alternation; memory.

Also the random graph used in such comparisons, and its adjacency as a torch tensor.
"""

import ctypes
import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.harness import common
from experiments.harness.machine import ROOT

Step = Callable[[], Any]
Clock = Callable[[], float]
LASTS = 0.02  # minimum duration of a measurement in seconds
LEAST = 3  # minimum number of rounds


# -- data ----------------------------------------------------------------------------------------------------------


def power_law(nodes: int, edges: int, seed: int) -> Tensor:
    """edge_index of an undirected Chung-Lu graph with degree exponent 3, without loops or double edges.

    Args:
        edges: number of directed edges; each has its reverse.

    >>> index = power_law(100, 300, 0)
    >>> index.shape, len(index.unique(dim=1).T), bool((index[0] == index[1]).any())
    (torch.Size([2, 300]), 300, False)
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.arange(1, nodes + 1, dtype=torch.float64).rsqrt()
    cumulated = (weight / weight.sum()).cumsum(0)
    names = torch.randperm(nodes, generator=generator)
    pairs = torch.empty(0, dtype=torch.int64)
    while len(pairs) < edges // 2:
        draw = torch.rand(2, edges // 2, generator=generator, dtype=torch.float64)
        low, high = torch.searchsorted(cumulated, draw).clamp(max=nodes - 1).sort(0).values
        pairs = torch.cat([pairs, (low * nodes + high)[low != high]]).unique()
    pairs = pairs[torch.randperm(len(pairs), generator=generator)[: edges // 2]]
    one, other = names[pairs // nodes], names[pairs % nodes]
    return torch.stack([torch.cat([one, other]), torch.cat([other, one])])


def adjacency(edge_index: Tensor, nodes: int, values: Tensor | None = None) -> Tensor:
    """The transposed adjacency as a torch CSR tensor; row i holds the edges that end at node i.

    >>> adjacency(torch.tensor([[0, 2], [1, 1]]), 3).to_dense()[1]
    tensor([1., 0., 1.])
    """
    # PyG also builds such tensors; torch would warn once that it does not check them
    torch.sparse.check_sparse_tensor_invariants.disable()
    source, target = edge_index
    order = torch.argsort(target * nodes + source)
    crow = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(target, minlength=nodes).cumsum(0)])
    numbers = torch.ones(len(order)) if values is None else values[order]
    return torch.sparse_csr_tensor(crow, source[order], numbers, (nodes, nodes))


# -- equal numbers -------------------------------------------------------------------------------------------------


def gap(case: str, what: str, got: Tensor, want: Tensor, tol: float) -> float:
    """The largest difference, relative to the largest value. Raises: ValueError if it exceeds the tolerance.

    >>> gap("a sum", "value", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), 1e-5)
    Traceback (most recent call last):
        ...
    ValueError: a sum: value differs by 2.0e-01 of its largest number, so no clock starts
    """
    got, want = got.detach(), want.detach()
    if got.shape != want.shape:
        raise ValueError(f"{case}: {what} has shape {tuple(got.shape)}, not {tuple(want.shape)}, so no clock starts")
    if not want.numel():
        return 0.0
    found = float((got - want).abs().max()) / (float(want.abs().max()) or 1.0)
    if not found <= tol:
        raise ValueError(f"{case}: {what} differs by {found:.1e} of its largest number, so no clock starts")
    return found


# -- time ----------------------------------------------------------------------------------------------------------


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Context manager that sets the number of threads of torch and the compiled kernels; 0 leaves it unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds(step: Step, calls: int, clock: Clock) -> float:
    """Seconds per call, averaged over a number of calls."""
    start = clock()
    for _ in range(calls):
        step()
    return (clock() - start) / calls


def repeats(step: Step, clock: Clock) -> tuple[int, float]:
    """The number of calls per measurement, and the seconds of each; the very first call is a warm-up."""
    calls, each = 1, seconds(step, 1, clock)
    if each < 50 * LASTS:
        while calls < 1 << 14 and (each := seconds(step, calls, clock)) * calls < LASTS:
            calls *= 2
    return calls, each


def take_turns(
    steps: Mapping[str, Step], rounds: int, clock: Clock = time.perf_counter, budget: float = math.inf
) -> dict[str, np.ndarray]:
    """Seconds per call of each implementation, with one measurement per round, in alternating order.

    Args:
        rounds: maximum number of rounds; reduced, but not below three, if they would take more than `budget` seconds.
    """
    plans = {name: repeats(step, clock) for name, step in steps.items()}
    cost = sum(calls * each for calls, each in plans.values())
    if cost * rounds > budget:
        rounds = min(rounds, max(LEAST, int(budget / cost)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name in list(steps)[:: 1 if number % 2 else -1]:
            times[name].append(seconds(steps[name], plans[name][0], clock))
    return {name: np.array(found) for name, found in times.items()}


def quartiles(name: str, values: np.ndarray) -> dict[str, float]:
    """NAME (the median), NAME_low and NAME_high (the quartiles)."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {name: float(median), f"{name}_low": float(low), f"{name}_high": float(high)}


QUIET = 0.2
"""Number of processors that other processes may use while official timings are recorded."""


def in_use(wait: float = 2.0) -> float:
    """The number of processors used by other processes, measured over some seconds; else the load average.

    >>> in_use(0.05) >= 0
    True
    """

    def busy() -> float:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq = map(int, file.readline().split()[1:8])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")

    try:
        before, own, start = busy(), time.process_time(), time.perf_counter()
        time.sleep(wait)
        return max(0.0, busy() - before - (time.process_time() - own)) / (time.perf_counter() - start)
    except OSError:
        return os.getloadavg()[0]


def timings(options: common.Options, name: str) -> common.Results:
    """The results file for timings. Raises: SystemExit for official ones while other processes use the machine."""
    if options.official and (busy := in_use()) > QUIET:
        raise SystemExit(
            f"error: other processes use {busy:.1f} processors, so official timings would be off: wait until they end "
            f"(at most {QUIET:g} is allowed), or leave --official out"
        )
    return options.open(name)


# -- memory --------------------------------------------------------------------------------------------------------


def resident() -> float:
    """Resident memory in MiB, after releasing unused memory; also resets the peak."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    common.reset_peak_memory()
    return common.peak_memory_mb()


def peak_of_steps(make: Callable[[], Step], steps: int = 3) -> dict[str, float]:
    """Peak memory in MiB above the start: of creating and running a step several times, and of one more step."""
    start = resident()
    step = make()
    for _ in range(steps):
        step()
    first = common.peak_memory_mb() - start
    settled = resident()
    step()
    return {"peak_mb": round(first, 1), "step_peak_mb": round(common.peak_memory_mb() - settled, 1)}


def peak_of_a_process(module: str, *arguments: str) -> dict[str, float]:
    """The last line printed by `python -m module --peak-of ...`, a dict of numbers."""
    command = [sys.executable, "-m", module, "--peak-of", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


# -- growth --------------------------------------------------------------------------------------------------------


def exponent(sizes: Any, values: Any) -> float:
    """The exponent p of a power law size^p, fitted by least squares between logarithms.

    >>> round(exponent([1, 10, 100], [2, 20, 200]), 6), round(exponent([1, 2, 4], [5, 20, 80]), 6)
    (1.0, 2.0)
    """
    return float(np.polyfit(np.log(np.asarray(sizes, float)), np.log(np.asarray(values, float)), 1)[0])


# -- goals -----------------------------------------------------------------------------------------------------------


def verdict(got: float, goal: float, at_most: bool = False) -> str:
    """The verdict on a goal: "met", "missed", or "-" without a goal.

    >>> verdict(2.5, 2), verdict(1.9, 2), verdict(0.3, 0.2, at_most=True), verdict(1.9, 0)
    ('met', 'missed', 'missed', '-')
    """
    if not goal:
        return "-"
    return "met" if (got <= goal if at_most else got >= goal) else "missed"
