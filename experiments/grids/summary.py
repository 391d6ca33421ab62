"""Summary of the rows of `experiments.grids`: the sweep over kernel sizes, as a sentence and as a figure."""

from collections.abc import Sequence
from typing import Any

from experiments.harness.common import Row
from experiments.harness.render import Draw

SIDES = {
    "gconv": "gconv, channels last",
    "gconv_by_fft": "gconv, FFT only, channels last",
    "conv2d": "F.conv2d, channels last",
    "gconv_contiguous": "gconv, contiguous",
    "conv2d_contiguous": "F.conv2d, contiguous",
}


def sweep(rows: Sequence[Row], backward: bool) -> list[Row]:
    """The depthwise rows, sorted by kernel size."""
    found = [row for row in rows if row["config"].get("kind") == "depthwise" and row["config"]["backward"] == backward]
    return sorted(found, key=lambda row: row["config"]["kernel"])


def remarks(rows: Sequence[Row]) -> list[str]:
    """The kernel sizes for which gconv was slowest relative to torch, for each memory format."""
    said = []
    for backward, what in ((False, "inference"), (True, "training")):
        for metric, layout in (("faster", "channels last"), ("contiguous_faster", "contiguous")):
            found = [row for row in sweep(rows, backward) if metric in row["metrics"]]
            if found:
                least = min(found, key=lambda row: row["metrics"][metric])
                k, ratio = least["config"]["kernel"], least["metrics"][metric]
                said.append(
                    f"Depthwise {what}, {layout}: at least {ratio:.2f} times as fast as torch in the same layout, "
                    f"least at {k}x{k}, over {len(found)} kernel sizes."
                )
    return said


def by_kernel(backward: bool) -> Draw:
    """Plot milliseconds against kernel size: gconv with the planned lowering, gconv by FFT, and torch."""

    def draw(axes: Any, rows: Sequence[Row]) -> None:
        found = sweep(rows, backward)
        for place, (side, label) in enumerate(SIDES.items()):
            points = [(row["config"]["kernel"], row["metrics"].get(f"{side}_ms")) for row in found]
            sizes, values = [k for k, ms in points if ms], [ms for _, ms in points if ms]
            if sizes:
                style = "--" if side.endswith("contiguous") else "-"
                axes.plot(
                    sizes, values, f"o{style}", color=f"C{place % 3 if place < 3 else 2 * (place - 3)}", label=label
                )
        axes.set(yscale="log", xlabel="kernel size along each side", ylabel="milliseconds")
        if axes.lines:
            axes.legend(fontsize="small")

    return draw
