"""Summaries and figures of the rows of `experiments.speed` and `experiments.speed.memory`.

Goals for groups of cases, geometric means, fitted exponents.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.harness import measure
from experiments.harness.common import Row
from experiments.harness.render import Draw
from experiments.speed.cases import EXPONENT, FLOOR, MEANS

OURS = "gconv"
Growth = dict[str, dict[str, tuple[list[float], list[float]]]]
UNITS = {"ms": "milliseconds", "mb": "MiB at the peak"}


def mean(rows: Sequence[Row], group: str, metric: str = "faster") -> float:
    """The geometric mean of a metric over a group of cases; nan without rows."""
    found = [row["metrics"][metric] for row in rows if row["config"].get("group") == group and metric in row["metrics"]]
    return math.exp(sum(map(math.log, found)) / len(found)) if found else math.nan


def growth(rows: Sequence[Row], group: str, axis: str) -> Growth:
    """ "ms" and "mb" -> "gconv" and "peer" -> sizes and values of the cases of a group, by edges or by width."""
    found: Growth = {}
    for row in (row for row in rows if row["config"].get("group") == group):
        config, m = row["config"], row["metrics"]
        size = config["edges"] if axis == "edges" else config["channels"][0]
        for unit in ("ms", "mb"):
            for side in (OURS, "peer"):
                if f"{side}_{unit}" in m:
                    sizes, values = found.setdefault(unit, {}).setdefault(side, ([], []))
                    sizes.append(size)
                    values.append(m[f"{side}_{unit}"])
    return found


def remarks(rows: Sequence[Row]) -> list[str]:
    """Sentences with geometric means and fitted exponents, and their goals."""
    said = []
    for group, goal in MEANS.items():
        if not math.isnan(got := mean(rows, group)):
            said.append(
                f"Geometric mean of the {group}: {got:.2f} times faster; goal {goal:g}, {measure.verdict(got, goal)}."
            )
    if not math.isnan(got := mean(rows, "layers", "over_floor")):
        verdict = measure.verdict(got, FLOOR, at_most=True)
        said.append(f"Geometric mean of the layers over their bare products: {got:.2f}; goal {FLOOR:g}, {verdict}.")
    return said + _grown(rows, "ms")


def memory_remarks(rows: Sequence[Row]) -> list[str]:
    """Sentences with geometric means of memory shares, goals that cannot be reached, and fitted exponents."""
    said = []
    for form, metric in (("the fastest form's", "memory_share"), ("the usual form's", "usual_share")):
        if not math.isnan(got := mean(rows, "layers", metric)):
            said.append(f"Geometric mean of the layers' share of {form} peak memory: {got:.3f}.")
    beyond: dict[str, list[str]] = {}
    for row in rows:
        (config, m), goal = (row["config"], row["metrics"]), row["config"].get("memory_goal", 0.0)
        for why, metric in (
            ("by the results alone", "results_share"),
            ("with an own form of the graph", "floor_share"),
        ):
            if goal and m[metric] > goal:
                beyond.setdefault(why, []).append(f"{config['op']} ({m[metric]:.2f})")
                break
    for why, which in beyond.items():
        said.append(f"Out of reach {why}, as a share of the fastest form: {', '.join(which)}.")
    return said + _grown(rows, "mb")


def _grown(rows: Sequence[Row], unit: str) -> list[str]:
    """Sentences with the fitted exponents of time or memory."""
    said = []
    for group, axis in (("edges", "edges"), ("spmm", "width")):
        found = growth(rows, group, axis).get(unit, {})
        fits = {side: measure.exponent(*points) for side, points in found.items() if len(points[0]) > 1}
        if OURS not in fits:
            continue
        what = {"ms": "Time", "mb": "Peak memory"}[unit]
        beside = f"; the peer's with {axis}^{fits['peer']:.2f}" if "peer" in fits else ""
        limit = f"; goal {EXPONENT:g}, {measure.verdict(fits[OURS], EXPONENT, at_most=True)}" if axis == "edges" else ""
        sizes = found[OURS][0]
        said.append(
            f"{what} grows with {axis}^{fits[OURS]:.2f} from {min(sizes)} to {max(sizes)} {axis}{beside}{limit}."
        )
        large = [(size, value) for size, value in zip(*found[OURS], strict=True) if size >= 100_000]
        if axis == "edges" and unit == "ms" and 1 < len(large) < len(sizes):
            got = measure.exponent(*zip(*large, strict=True))
            said.append(f"From 100000 edges on, where the overhead of a call is small, with edges^{got:.2f}.")
    return said


# -- pictures ------------------------------------------------------------------------------------------------------


def grown(group: str, axis: str, unit: str) -> Draw:
    """Plot milliseconds or MiB of gconv and its peer against edges or width, with fitted exponents."""

    def draw(axes: Any, rows: Sequence[Row]) -> None:
        for side, (sizes, values) in growth(rows, group, axis).get(unit, {}).items():
            who = side if side == OURS else "PyG"
            label = f"{who}, {axis}^{measure.exponent(sizes, values):.2f}" if len(sizes) > 1 else who
            axes.loglog(sizes, values, "o-", label=label)
        axes.set(xlabel=axis, ylabel=UNITS[unit])
        if axes.lines:
            axes.legend()

    return draw


def ratios(axes: Any, rows: Sequence[Row]) -> None:
    """Draw a bar for each comparison with a goal: times faster than the peer, quartiles, and the goal as a mark."""
    rows = [row for row in rows if row["config"].get("goal")]
    axes.figure.set_size_inches(9, 1.5 + 0.2 * len(rows))
    for place, row in enumerate(reversed(rows)):
        m, goal = row["metrics"], row["config"]["goal"]
        spread = [[max(0.0, m["faster"] - m["faster_low"])], [max(0.0, m["faster_high"] - m["faster"])]]
        axes.barh(place, m["faster"], xerr=spread, color="C0" if m["verdict"] == "met" else "C3")
        axes.plot([goal, goal], [place - 0.4, place + 0.4], color="black")
    axes.set_yticks(range(len(rows)), [row["config"]["case"] for row in reversed(rows)], fontsize=6)
    axes.set(xscale="log", xlabel="times faster than the peer; black: the goal, red: missed")
    axes.axvline(1, color="grey", linewidth=0.5)


def roofline(axes: Any, rows: Sequence[Row]) -> None:
    """Roofline plot: GFLOP/s of forward passes against FLOP per byte, with the limits of the machine."""
    limits = next((row["metrics"] for row in rows if "copy_gb_s" in row["metrics"]), None)
    found = [row for row in rows if "flops" in row["metrics"] and row["config"]["group"] != "spmm"]
    for row in found:
        m, config = row["metrics"], row["config"]
        ms = m.get("gconv_forward_ms", m["gconv_ms"])
        name = f"{config['op']} layer" if config["kind"] == "layer" else f"S X, width {config['channels'][0]}"
        axes.plot(m["flops"] / m["bytes"], m["flops"] / ms / 1e6, "o" if config["kind"] == "layer" else "s", label=name)
    if limits:
        x = np.geomspace(0.1, 1000, 200)
        roof = np.minimum(x * limits["copy_gb_s"], limits["mm_gflop_s"])
        label = f"copy {limits['copy_gb_s']:.0f} GB/s, product {limits['mm_gflop_s']:.0f} GFLOP/s"
        axes.plot(x, roof, color="black", label=label)
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte, every array read or written once", ylabel="GFLOP/s")
    if axes.lines:
        axes.legend(fontsize=6)
