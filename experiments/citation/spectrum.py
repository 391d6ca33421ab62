"""Singular values of a Chebyshev layer on Cora from the eigenvalues of the graph, compared with those of its matrix.

Protocol: `cheb(c, c, k)` with its initial weights, in float64, on Cora (or the subgraph of its first papers), with the
number of threads given by OMP_NUM_THREADS. The first method computes the eigenvalues of the Laplacian (included in the
time) and one c x c singular value decomposition for each; the second forms the n c x n c matrix and decomposes it
(torch.linalg.svdvals). Error: the largest difference of the sorted values, relative to the largest value. Seconds: the
median of `repeats` runs of the first method, one run of the second; processor seconds are given as well, since they
depend less on other load.

    python -m experiments.citation.spectrum                   all of Cora, 4 -> 4 channels: a matrix of 10832 x 10832
    python -m experiments.citation.spectrum --nodes 300       a small part, in seconds
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from experiments.harness import common
from gconv import GConv, Graph
from gconv.analysis import matrix, singular_values
from gconv.operators import cheb

BOUND = 1e-10


@dataclass(frozen=True)
class Config:
    """Graph size, channels and repetitions."""

    nodes: int = 0
    """Use the first papers only; 0 for all."""
    channels: int = 4
    """Input and output channels."""
    terms: int = 3
    """Number of Chebyshev polynomials."""
    repeats: int = 3
    """Runs of the fast method, of which the median is reported."""
    seed: int = 0
    """Seed of the initial weights."""


def graph(config: Config, root: object = None) -> tuple[Graph, common.Data]:
    """Cora, or its first papers, with label and hash."""
    from datasets import load_planetoid

    cora = load_planetoid("Cora", root)  # type: ignore[arg-type]
    n = config.nodes or cora.data.num_nodes
    inside = (cora.data.edge_index < n).all(0)
    return Graph(cora.data.edge_index[:, inside], n), common.Data(cora.label, cora.content_hash)


def timed(make: Callable[[], Tensor]) -> tuple[Tensor, tuple[float, float]]:
    """The result of `make`, its wall time and its processor time in seconds."""
    start = time.process_time()
    with common.timer() as clock:
        made = make()
    return made, (clock.seconds, time.process_time() - start)


def measure(config: Config, root: object = None) -> common.Outcome:
    """Both methods, their times and their difference."""
    place, _ = graph(config, root)
    common.seed_everything(config.seed)
    layer = GConv(cheb(config.channels, config.channels, k=config.terms), dtype=torch.float64)
    A = layer.at(place)
    fast = []
    for _ in range(config.repeats):
        values, seconds = timed(lambda: singular_values(A))
        fast.append(seconds)
    want, slow = timed(lambda: torch.linalg.svdvals(matrix(A).detach()))
    wall, cpu = (statistics.median(column) for column in zip(*fast, strict=True))
    error = float((values - want).abs().max() / want[0])
    metrics = {
        "sites": place.size,
        "rows": A.shape[0],
        "fourier_seconds": wall,
        "explicit_seconds": slow[0],
        "ratio": slow[0] / wall,
        "fourier_cpu_seconds": cpu,
        "explicit_cpu_seconds": slow[1],
        "cpu_ratio": slow[1] / cpu,
        "max_error": error,
        "norm": float(want[0]),
    }
    return common.Outcome(metrics)


def main(argv: list[str] | None = None) -> None:
    """Command line. Raises: SystemExit if the two methods differ by more than rounding."""
    from datasets.root import DataError

    config, how = common.cli(Config, __doc__, argv)
    try:
        _, data = graph(config, how.data_root)
    except DataError as problem:
        raise SystemExit(f"error: {problem}") from problem
    configs = [replace(config, seed=config.seed + s) for s in range(how.seeds)]
    run = partial(measure, root=how.data_root)
    rows = common.sweep(configs, run, how.open("spectrum"), experiment="spectrum", data=data, jobs=how.jobs)
    for row in rows:
        m = row["metrics"]
        print(
            f"{m['sites']} nodes, matrix {m['rows']} x {m['rows']}: {m['fourier_seconds']:.2f} s by the eigenvalues, "
            f"{m['explicit_seconds']:.2f} s by the matrix, {m['ratio']:.0f} times "
            f"({m['cpu_ratio']:.0f} in processor time); error {m['max_error']:.1e}"
        )
    if any(not row["metrics"]["max_error"] <= BOUND for row in rows):
        raise SystemExit(f"error: the two ways differ by more than {BOUND:.0e}")


if __name__ == "__main__":
    main()
