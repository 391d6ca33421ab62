"""The figures of `experiments.by_hand`: sums and kernels as matrices, and the frequencies of a graph."""

import io
import math
import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from PIL import Image

from experiments.by_hand.graph import EDGES, PAIRS, by_definition
from experiments.by_hand.loops import as_matrix, chebyshev, convolve_1d, correlate_1d

NINE = ["#ffffff", "#08306b", "#2171b5", "#9ecae1", "#00441b", "#238b45", "#a1d99b", "#7f2704", "#d94801", "#fdae6b"]
COLOURS, STEPS = ListedColormap(NINE), BoundaryNorm(np.arange(-0.5, 10), 10)  # white: zero; 1 to 9: a 3 x 3 kernel
INK = "#444444"


def cells(axes: Any, a: np.ndarray, blocks: tuple[int, int] | None = None, numbers: bool = False) -> None:
    """Draw a matrix of the numbers 0 to 9, one colour per number, with thicker lines around blocks."""
    axes.imshow(a, cmap=COLOURS, norm=STEPS, interpolation="nearest")
    (m, n), (high, wide) = a.shape, blocks or a.shape
    fine, heavy = {"color": "#cccccc", "linewidth": 0.5}, {"color": INK, "linewidth": 1.2}
    for step_m, step_n, style in ((1, 1, fine), (high, wide, heavy)):
        axes.hlines(np.arange(0, m + 1, step_m) - 0.5, -0.5, n - 0.5, **style)
        axes.vlines(np.arange(0, n + 1, step_n) - 0.5, -0.5, m - 0.5, **style)
    for i, j in product(range(m), range(n)):
        if numbers and a[i, j]:
            colour = "black" if a[i, j] in (3, 6, 9) else "white"
            axes.text(j, i, f"{a[i, j]:g}", ha="center", va="center", color=colour)
    axes.set(xticks=[], yticks=[], frame_on=False)


def sums(figure: Any) -> None:
    """The 1-D sum as a matrix: the kernel runs backwards in a convolution, forwards in a network."""
    f, g = np.array([1.0, 2, 3, 4]), np.array([3.0, 2, 1])
    eye = np.eye(4)
    flipped = np.stack([convolve_1d(e, g) for e in eye], 1)
    plain = np.stack([correlate_1d(e, g) for e in eye], 1)
    left, right = figure.subplots(1, 2)
    for axes, a, title in (
        (left, flipped, "convolution: row n holds g[n - m],\nthe kernel 3 2 1 backwards"),
        (right, plain, "networks (cross-correlation):\nrow n holds g[m - n], the kernel as it is"),
    ):
        cells(axes, a, numbers=True)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(len(flipped) - 0.4, -0.6)  # cells of one size in both
        axes.xaxis.set_ticks_position("top")
        axes.set(xticks=range(4), xticklabels=[f"f[{m}]\n{v:g}" for m, v in enumerate(f)])
        axes.set(yticks=range(len(a)), yticklabels=[f"out[{n}] = {v:g}" for n, v in enumerate(a @ f)])
        axes.tick_params(length=0, labelsize=8)


def matrices(figure: Any) -> None:
    """The matrix of a 3 x 3 kernel on a 5 x 5 image: doubly block Toeplitz, circulant, and with a stride."""
    kernel = np.arange(1.0, 10).reshape(3, 3, 1, 1)
    (zero, circular), (taps, stride) = figure.subplots(2, 2, height_ratios=[25, 9])
    cells(taps, kernel[..., 0, 0], numbers=True)
    taps.set_title("kernel", fontsize=10)
    for axes, geometry, title in (
        (zero, {"p": 1}, "zero padding: doubly block Toeplitz"),
        (circular, {"p": 1, "circular": True}, "circular padding: doubly block circulant"),
        (stride, {"p": 1, "s": 2}, "stride 2: every other row of\nevery other block (9 x 25)"),
    ):
        a = as_matrix((5, 5, 1), kernel, **geometry)
        cells(axes, a, (math.isqrt(len(a)), 5))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("input pixels; each block is one image row", fontsize=8)
        axes.set_ylabel("output pixels", fontsize=8)


def shifts(figure: Any) -> None:
    """The same matrix as a sum of shifts, one per kernel entry."""
    axes = figure.subplots(3, 3)
    for m, n in np.ndindex(3, 3):
        kernel = np.zeros((3, 3, 1, 1))
        kernel[m, n] = 3 * m + n + 1
        cells(axes[m, n], as_matrix((4, 4, 1), kernel, p=1), (4, 4))
        axes[m, n].set_title(f"$S_{3 * m + n}$: reads ({m - 1:+d}, {n - 1:+d})".replace("+0", "0"), fontsize=9)
    figure.suptitle("A 3 x 3 kernel on a 4 x 4 image is nine shifts: $Y = \\sum_k S_k X W_k$", fontsize=11)


def idea(figure: Any) -> None:
    """One 3 x 3 convolution on a 4 x 4 image: as shifts, as a matrix, as a graph; and what a GCN keeps of it."""
    kernel = np.arange(1.0, 10).reshape(3, 3, 1, 1)
    labels = as_matrix((4, 4, 1), kernel, p=1)
    taps, matrix, graph, gcn = figure.subplots(1, 4)
    cells(taps, kernel[..., 0, 0], numbers=True)
    taps.set_title("kernel: nine shifts $S_k$,\na weight $W_k$ each", fontsize=10)
    cells(matrix, labels, (4, 4))
    matrix.set_title("the same as one matrix: rows\nare outputs, columns inputs", fontsize=10)
    place = np.array([(i % 4, -(i // 4)) for i in range(16)], float)
    for axes, title in (
        (graph, "the same as a graph:\nedges labelled by their offset"),
        (gcn, "a GCN keeps the edges\nand forgets the labels"),
    ):
        for i, j in np.argwhere(labels):
            label = int(labels[i, j])
            across, along = place[i] - place[j], 0.055
            aside = np.array([-across[1], across[0]]) * along  # draw the two directions next to each other
            colour = NINE[label] if axes is graph else "#999999"
            if i != j:
                axes.plot(*np.stack([place[j] + aside, place[i] + aside]).T, color=colour, linewidth=1.6, zorder=1)
        loop = NINE[5] if axes is graph else "#999999"
        axes.scatter(*place.T, s=110, color=loop, edgecolors="white", zorder=2)
        axes.set_title(title, fontsize=10)
        axes.set_aspect("equal")
        axes.axis("off")


def frequencies(figure: Any) -> None:
    """The graph, the Chebyshev polynomials at its frequencies, filters made of them, and what T_k reaches."""
    _, lmax, _, z, _ = by_definition()
    line = np.linspace(-1, 1, 201)
    (graph, terms), (filters, reach) = figure.subplots(2, 2)

    place = np.array([[0, 1], [0, -1], [1, 0], [2.4, 0], [3.4, 1], [3.4, -1]])
    theta = np.array([0.4, -0.5, 0.1])
    spike = np.tensordot(theta, chebyshev(np.eye(6)[:, :1], EDGES, lmax, 3), 1)[:, 0]
    for i, j in PAIRS:
        graph.plot(*place[[i, j]].T, color="#999999", zorder=1)
    graph.scatter(*place.T, c=spike, s=900, cmap="Blues", vmin=0, vmax=0.35, edgecolors=INK, zorder=2)
    for i, (at, value) in enumerate(zip(place, spike, strict=True)):
        graph.text(*at, f"{value:.2f}", ha="center", va="center", fontsize=9, color="white" if value > 0.2 else "black")
        across, up = at
        away = -0.45 if up < 0 else 0.45
        graph.text(across, up + away, f"node {i}", ha="center", va="center", fontsize=8, color=INK)
    graph.set_title("a spike at node 0 after the low-pass filter", fontsize=10)
    graph.set(xlim=(-0.6, 4), ylim=(-1.6, 1.8))
    graph.axis("off")

    for k in range(4):
        terms.plot(line, np.cos(k * np.arccos(line)), color=f"C{k}", label=f"$T_{k}$")
        terms.plot(z, np.cos(k * np.arccos(z.clip(-1, 1))), "o", color=f"C{k}", markersize=4)
    terms.set_title("Chebyshev polynomials; dots: the graph's frequencies", fontsize=10)
    terms.set_xlabel("z, the eigenvalues of $\\tilde L$")
    terms.set(ylim=(-1.1, 1.5), xticks=[-1, -0.5, 0, 0.5, 1])
    terms.legend(fontsize=8, loc="upper center", ncols=4)

    for weights, name in (
        (theta, "low-pass: 0.4, -0.5, 0.1"),
        (np.array([0.5, 0.5]), "high-pass: 0.5, 0.5"),
        (np.array([0.5, 0, -0.5]), "band-pass: 0.5, 0, -0.5"),
    ):
        (drawn,) = filters.plot((line + 1) * lmax / 2, np.polynomial.chebyshev.chebval(line, weights), label=name)
        dots = np.polynomial.chebyshev.chebval(z, weights)
        filters.plot((z + 1) * lmax / 2, dots, "o", color=drawn.get_color(), markersize=4)
    filters.set_title("frequency responses $h = \\Sigma_k\\, \\theta_k T_k$", fontsize=10)
    filters.set_xlabel("frequency, the eigenvalues of $L$")
    filters.set_ylim(-0.05, 1.55)
    filters.legend(fontsize=8, loc="upper center", title="$\\theta$", title_fontsize=8)

    T = np.stack(chebyshev(np.eye(6), EDGES, lmax, 4))
    first = (abs(T) > 1e-12).argmax(0)  # the first k that reaches from j to i
    reach.imshow(first, cmap=ListedColormap(["C0", "C1", "C2", "C3"]), alpha=0.75, vmin=0, vmax=3)
    for i, j in np.ndindex(6, 6):
        reach.text(j, i, f"{first[i, j]}", ha="center", va="center", fontsize=9)
    reach.set_title("the first k whose $T_k$ joins two nodes: their distance", fontsize=10)
    reach.set(xlabel="from node", ylabel="to node")


def draw(folder: Path) -> list[Path]:
    """Write all figures as by_hand_NAME.png to the folder, each atomically."""
    made = []
    for name, paint, shape in (
        ("idea", idea, (11, 3.3)),
        ("sum", sums, (7, 3.6)),
        ("matrix", matrices, (7, 5.6)),
        ("shifts", shifts, (6, 6.6)),
        ("cheb", frequencies, (9.5, 7)),
    ):
        figure = Figure(figsize=shape, layout="constrained")  # its own Agg canvas: no display, no global state
        paint(figure)
        path = folder / f"by_hand_{name}.png"
        figure.savefig(whole := io.BytesIO(), format="png", dpi=110)
        trial = path.with_suffix(".tmp")
        try:
            with Image.open(whole) as drawn:  # in 96 colours, a third of the size
                drawn.convert("RGB").quantize(96, dither=Image.Dither.NONE).save(trial, "png", optimize=True)
            os.replace(trial, path)
        finally:
            trial.unlink(missing_ok=True)
        made.append(path)
    return made
