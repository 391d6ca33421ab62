"""The short table of README.md: a few numbers from the result tables, rendered from the same rows.

Each line gives gconv's number, what it is compared with, and the page with the full table. The sentence below the table
names the machine on which the times were measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.citation import published
from experiments.harness import render
from experiments.harness.common import Row
from experiments.harness.render import get
from experiments.report.operators import between, markdown

HEAD = ("measurement", "gconv", "compared with", "page")


class Line(NamedTuple):
    """A line of the table: its label, the rows it is computed from, and its two cells."""

    what: str
    experiment: str
    where: dict[str, Any]
    cells: Callable[[list[Row]], tuple[str, str]]
    page: str


def speed(rows: list[Row]) -> tuple[str, str]:
    """Milliseconds of gconv and of the fastest variant of PyG, with the ratio."""
    (row,) = rows
    ms, peer, ratio = (get(row, f"metrics.{name}") for name in ("gconv_ms", "peer_ms", "faster"))
    return f"{_short(ms)} ms", f"{get(row, 'metrics.peer')}: {_short(peer)} ms (gconv {ratio:.1f} times as fast)"


def accuracy(rows: list[Row]) -> tuple[str, str]:
    """Accuracy on Cora, and the published accuracy."""
    (number,) = [p for p in published.CITATION if (p.row, p.column) == (get(rows[0], "config.model"), "Cora")]
    return _percent(rows), f"published: {number.value} %"


def rungs(rows: list[Row]) -> tuple[str, str]:
    """Accuracy with a weight matrix for each of the nine taps, and with a single one."""
    nine, one = ([r for r in rows if get(r, "config.rung") == rung] for rung in ("9", "1"))
    return f"{_percent(nine)}", f"one weight matrix for all nine pixels: {_percent(one)}"


def gap(rows: list[Row]) -> tuple[str, str]:
    """The largest difference of logits between a CNN and its graph twin."""
    worst = max(get(row, "metrics.logit_gap_float64") for row in rows)
    return f"{worst:.0e}", "the CNN itself, in float64"


def _short(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def _percent(rows: list[Row]) -> str:
    values = [100 * get(row, "metrics.test_accuracy") for row in rows]
    return f"{statistics.fmean(values):.1f} % ({len(values)} {'seeds' if len(values) > 1 else 'seed'})"


LAYER = "170000 nodes, 2330000 edges, forward + backward"
LADDER = {
    "data.label": "CIFAR-10, JPEG copy",
    "config.where": "all",
    "config.width": 32,
    "config.spec": "",
    "config.limit": None,
    "config.epochs": 8,
}
LINES = (
    Line("CIFAR-10 (JPEG copy): test accuracy of a 3x3 CNN after 8 epochs", "ladder", LADDER, rungs, "cifar10.md"),
    Line(
        "a trained CNN run as graph convolutions: largest difference of logits", "cifar10_twin", {}, gap, "cifar10.md"
    ),
    Line(
        "Cora, public split: test accuracy of a GCN",
        "citation",
        {"config.model": "gcn", "config.dataset": "Cora"},
        accuracy,
        "citation.md",
    ),
    Line(
        f"time of a GCN layer, {LAYER}",
        "speed",
        {"config.case": f"gcn layer, 128 -> 64, {LAYER}"},
        speed,
        "speed.md",
    ),
    Line(
        f"time of a GAT layer, {LAYER}",
        "speed",
        {"config.case": f"gat layer, 128 -> 8 heads of 8, {LAYER}"},
        speed,
        "speed.md",
    ),
    Line(
        "time of a GCN training step, graph of Cora's size",
        "speed",
        {"config.case": "gcn training step, 1433 -> 16 -> 7, Cora's size"},
        speed,
        "speed.md",
    ),
)


def measured(rows: list[Row]) -> str:
    """The machine on which times were measured, and what the numbers are; empty without rows.

    >>> row = {"hardware": {"cpu": "AMD EPYC", "threads": 2}, "metrics": {"kernels": "c-avx2"}}
    >>> measured([row, row])  # doctest: +ELLIPSIS
    'Times are medians on 2 threads (AMD EPYC, c-avx2 kernels); ...'
    """
    names = ("hardware.threads", "hardware.cpu", "metrics.kernels")
    found = dict.fromkeys(tuple(get(row, name) for name in names) for row in rows)
    if not found:
        return ""
    places = " and ".join(f"{threads} threads ({cpu}, {kernels} kernels)" for threads, cpu, kernels in found)
    return (
        f"Times are medians on {places}; ratios are medians over rounds in which the two libraries are timed in turn, "
        "so they can differ from the quotient of the times. The fastest variant of PyG is shown."
    )


def fill(text: str, results: Path) -> str:
    """`text` with its short table rendered again. Raises: TableError if a marker stands alone."""

    def body() -> str:
        lines, timed = [], []
        for line in LINES:
            rows = render.select(render.load(results, line.experiment), line.where.items())
            cells = line.cells(rows) if rows else ("no rows yet", "")
            lines.append([line.what, *cells, f"[{line.page[:-3]}](docs/results/{line.page})"])
            timed += rows if line.cells is speed else []
        return "\n\n".join(filter(None, [markdown(HEAD, lines), measured(timed)]))

    return between(text, "front", body)
