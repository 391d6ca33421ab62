"""The figure of `experiments.conformance`: the matrices of each family of libraries, differing entries framed."""

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from experiments.harness.common import Row

INK, APART = "#444444", "#d62728"
COLUMNS = 4  # as wide as the text of a page, so that the numbers can be read


def draw(rows: Sequence[Row], folder: Path) -> Path:
    """Write conformance.png, the matrices on the graph with all special cases, to the folder."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row["config"]["family"], []).append(row)
    lines = {family: math.ceil(len(members) / COLUMNS) for family, members in families.items()}
    figure = Figure(figsize=(1.5 * COLUMNS + 0.4, 1.75 * sum(lines.values()) + 0.5), layout="constrained")
    axes, top = figure.subplots(sum(lines.values()), COLUMNS, squeeze=False), 0
    for family, members in families.items():
        first = np.array(members[0]["metrics"]["matrix_everything"])
        scale = max(abs(np.array(row["metrics"]["matrix_everything"])).max() for row in members)
        panels = axes[top : top + lines[family]].ravel()
        top += lines[family]
        for panel in panels:
            panel.axis("off")
        for panel, row in zip(panels, members, strict=False):
            S = np.array(row["metrics"]["matrix_everything"])
            panel.axis("on")
            panel.imshow(S, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            for i, j in np.ndindex(*S.shape):
                if abs(S[i, j]) > 5e-4:
                    colour = "white" if abs(S[i, j]) > 0.6 * scale else "black"
                    panel.text(j, i, f"{S[i, j]:.2f}", ha="center", va="center", fontsize=6, color=colour)
                if abs(S[i, j] - first[i, j]) > 1e-9:
                    panel.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, fill=False, edgecolor=APART, lw=0.9))
            apart = abs(S - first).max() > 1e-9
            for side in panel.spines.values():
                side.set(color=APART if apart else INK, linewidth=2 if apart else 0.8)
            star = "" if row["metrics"]["known"] == "run" else " *"
            panel.set_title(row["config"]["peer"].replace(", ", ",\n", 1) + star, fontsize=7)
        panels[0].set_ylabel(family, fontsize=9, fontweight="bold")
    figure.suptitle(
        "The matrix S of each library on the same graph; rows are outputs, columns inputs.\n"
        "Red: differs from the first of its family. *: not run, by its published code or documentation",
        fontsize=8,
    )
    figure.savefig(whole := io.BytesIO(), format="png", dpi=110)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "conformance.png"
    trial = path.with_suffix(".tmp")
    try:
        with Image.open(whole) as drawn:
            drawn.convert("RGB").quantize(96, dither=Image.Dither.NONE).save(trial, "png", optimize=True)
        os.replace(trial, path)
    finally:
        trial.unlink(missing_ok=True)
    return path
