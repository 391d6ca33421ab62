"""Draws the pictures of operator pages, and sets the style of all figures in the documentation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gconv import Graph, analysis
from gconv.domains import Grid
from gconv.spec import Operator
from gconv.testing import Case

STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.constrained_layout.use": True,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "font.size": 9,
    "image.interpolation": "nearest",
    "image.cmap": "viridis",  # brightness increases with the value, so it is readable in greyscale
}


def use_style(*_: Any) -> None:
    """Set the style and the random seed; called before each script of the gallery."""
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(STYLE)
    torch.manual_seed(0)
    torch.set_num_threads(1)


def support(case: Case) -> Tensor:
    """(m, n) whether output site m reads input site n, found by propagating a NaN from each site; also for maxima."""
    n = case.signal.shape[0]
    x = torch.zeros(n, n, case.signal.shape[1], dtype=torch.float64)
    x[torch.arange(n), torch.arange(n)] = math.nan
    grid = isinstance(case.domain, Grid)
    with torch.no_grad():
        y = case(x.mT.reshape(n, -1, *case.domain.shape) if isinstance(case.domain, Grid) else x)
    return (y.flatten(2).isnan().any(1) if grid else y.isnan().any(-1)).mT


def operator_picture(entry: Operator, path: Path) -> tuple[str, str]:
    """Draw the first sample of an operator.

    Returns:
        the caption and the alternative text.
    """
    case = Case.of(entry.samples()[0], torch.float64, batch=1)
    A = case.map()
    response = None
    if A is None:
        seen = support(case).double()
    else:
        n, i = case.signal.shape
        M = analysis.matrix(A).detach()
        M = M.abs() if M.is_complex() else M
        seen = M.reshape(-1, M.shape[0] // _targets(case), n, i).abs().sum((1, 3))
        try:
            response = analysis.frequency_response(A)
        except ValueError:
            response = None
        if response is not None and response.frequency.ndim > 1 and response.frequency.shape[1] > 2:
            response = None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6 if response else 6.6, 3.2), layout="none")
        figure.subplots_adjust(left=0.07, right=0.97, bottom=0.17, top=0.86, wspace=0.4)  # constrained layout is slow
        panels = figure.subplots(1, 3 if response else 2)
        if A is None:
            panels[0].imshow(seen.numpy(), cmap="Greys", vmin=0, vmax=1.5)
            panels[0].set(xlabel="input site", ylabel="output site", title=f"inputs of each output: {_size(seen)}")
        else:
            analysis.plot_matrix(M, panels[0])
            panels[0].set_title(f"matrix, {M.shape[0]} x {M.shape[1]}")
        site = int(seen.count_nonzero(1).argmax())
        _field(seen[site], case, panels[1], site)
        if response:
            analysis.plot_response(response, panels[2], [(0, 0)])
            panels[2].set_title("frequency response, channel 0 -> 0")
        figure.savefig(path)
    where = f"a grid {' x '.join(map(str, case.domain.shape))}" if isinstance(case.domain, Grid) else "a small graph"
    parts = ["the inputs that each output reads" if A is None else "the matrix with random weights"]
    parts.append(f"the inputs of output {site}" if A is None else f"the absolute weight of each input in output {site}")
    parts += ["the frequency response of the first channel"] * (response is not None)
    shown = f"{', '.join(parts[:-1])} and {parts[-1]}"
    title = f"`{case.sample.spec}` on {where}: {shown}."
    reads = int(seen[site].count_nonzero())
    size = _size(seen if A is None else M)
    return title, f"{entry.name}: {shown}; {size}, output {site} reads {reads} of {seen.shape[1]} sites"


def _targets(case: Case) -> int:
    target = case.structure.target(case.domain)
    return math.prod(target.shape) if isinstance(target, Grid) else target.size


def _size(M: Tensor) -> str:
    return f"{M.shape[0]} x {M.shape[1]}"


def _field(values: Tensor, case: Case, axes: Any, site: int) -> None:
    """Draw the weight of each input site in one output: as pixels on a grid, as nodes on a graph."""
    axes.set_title(f"inputs of output {site}")
    domain = case.domain
    if isinstance(domain, Graph):
        draw_graph(domain, axes, values)
    elif len(domain.shape) == 1:
        axes.bar(range(len(values)), values.numpy(), color="0.35")
        axes.set(xlabel="input site", ylabel="absolute weight")
    else:
        picture = values.reshape(domain.shape)
        if picture.ndim == 3:
            depth = int(picture.sum((1, 2)).argmax())
            picture = picture[depth]
            axes.set_title(f"inputs of output {site},\nslice {depth}")
        image = axes.imshow(picture.numpy(), vmin=0)
        axes.set(xticks=[], yticks=[])
        axes.figure.colorbar(image, ax=axes, shrink=0.7)


def places(graph: Graph) -> Tensor:
    """(n, 2) positions for drawing nodes: their 2-D positions if the graph has them, else a circle."""
    if graph.pos is not None and graph.pos.shape[1] == 2:
        return graph.pos.flip(1) * torch.tensor([1.0, -1.0])
    angle = math.pi / 2 - 2 * math.pi * torch.arange(graph.size) / graph.size
    return torch.stack([angle.cos(), angle.sin()], 1)


def draw_graph(graph: Graph, axes: Any, values: Tensor) -> None:
    """Draw a graph with its nodes coloured by value."""
    at = places(graph).double()
    for j, i in graph.edge_index.mT.tolist():
        axes.plot(*at[[j, i]].mT.numpy(), color="0.75", linewidth=1, zorder=1)
    shown = axes.scatter(*at.mT.numpy(), c=values.numpy(), s=130, vmin=0, edgecolors="0.2", zorder=2)
    for i, (across, up) in enumerate(at.tolist()):
        axes.annotate(str(i), (across, up), xytext=(8, 6), textcoords="offset points", fontsize=8)
    axes.margins(0.15)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.figure.colorbar(shown, ax=axes, shrink=0.7)
