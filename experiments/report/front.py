"""The short table of README.md: a few numbers of the result tables, from the same rows.

Each line is a fact with gconv's number, what it is compared with, and the page that has the whole table.
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

HEAD = ("what", "gconv", "compared with", "page")


class Line(NamedTuple):
    """A line of the table: what it says, the rows it is made of, and its two cells."""

    what: str
    experiment: str
    where: dict[str, Any]
    cells: Callable[[list[Row]], tuple[str, str]]
    page: str


def speed(rows: list[Row]) -> tuple[str, str]:
    """Milliseconds of gconv and of the fastest form of PyG, with the ratio."""
    (row,) = rows
    ms, peer, ratio = (get(row, f"metrics.{name}") for name in ("gconv_ms", "peer_ms", "faster"))
    return f"{_short(ms)} ms", f"{get(row, 'metrics.peer')}: {_short(peer)} ms, {ratio:.1f} times slower"


def accuracy(rows: list[Row]) -> tuple[str, str]:
    """Accuracy on Cora, and the published one."""
    (number,) = [p for p in published.CITATION if (p.row, p.column) == (get(rows[0], "config.model"), "Cora")]
    return _percent(rows), f"published: {number.value} %"


def rungs(rows: list[Row]) -> tuple[str, str]:
    """Accuracy with nine taps told apart, and with one."""
    nine, one = ([r for r in rows if get(r, "config.rung") == rung] for rung in ("9", "1"))
    return f"{_percent(nine)}", f"one weight for all neighbours: {_percent(one)}"


def gap(rows: list[Row]) -> tuple[str, str]:
    """The largest difference of logits between a CNN and its graph twin."""
    worst = max(get(row, "metrics.logit_gap_float64") for row in rows)
    return f"{worst:.0e}", "the CNN, float64"


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
    Line("CNN of 3x3 convolutions on CIFAR-10, JPEG copy: test accuracy", "ladder", LADDER, rungs, "cifar10.md"),
    Line("a trained CNN as graph convolutions: largest difference of logits", "cifar10_twin", {}, gap, "cifar10.md"),
    Line(
        "GCN on Cora, public split: test accuracy",
        "citation",
        {"config.model": "gcn", "config.dataset": "Cora"},
        accuracy,
        "citation.md",
    ),
    Line(f"GCN layer, {LAYER}", "speed", {"config.case": f"gcn layer, 128 -> 64, {LAYER}"}, speed, "speed.md"),
    Line(
        f"GAT layer, {LAYER}", "speed", {"config.case": f"gat layer, 128 -> 8 heads of 8, {LAYER}"}, speed, "speed.md"
    ),
    Line(
        "training step of a GCN, Cora's size",
        "speed",
        {"config.case": "gcn training step, 1433 -> 16 -> 7, Cora's size"},
        speed,
        "speed.md",
    ),
)


def fill(text: str, results: Path) -> str:
    """`text` with its short table rendered again. Raises: TableError if a marker stands alone."""

    def body() -> str:
        lines = []
        for line in LINES:
            rows = render.select(render.load(results, line.experiment), line.where.items())
            cells = line.cells(rows) if rows else ("no rows yet", "")
            lines.append([line.what, *cells, f"[{line.page[:-3]}](docs/results/{line.page})"])
        return markdown(HEAD, lines)

    return between(text, "front", body)
