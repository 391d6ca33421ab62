"""The fixed overhead of a call of each lowering."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import astuple, replace

import torch
from torch import Tensor

from gconv.calibrate.sections import SMALL, Steps, path_graph
from gconv.call import Call
from gconv.domains import Graph
from gconv.lowering import LOWERINGS
from gconv.lowering.base import Problem
from gconv.module import GConv
from gconv.operators import (
    agnn,
    appnp,
    avg_pool2d,
    cheb,
    conv1d,
    conv2d,
    conv_transpose2d,
    gat,
    gatv2,
    gcn,
    gin,
    monet,
    relational,
    sage,
    separable,
    spectral,
)
from gconv.plan import form, step_of
from gconv.rates import Curve, Rates


def _tiny() -> list[tuple[GConv, Tensor, Graph | None, tuple[str, ...]]]:
    """Layers with tiny inputs, and the lowerings whose overhead is measured with them."""
    sparse = ("sparse:aggregate", "sparse:transform", "dense")
    recurrence = ("recurrence:aggregate", "recurrence:transform", "dense")
    grid = ("im2col", "fft", *sparse)
    path = path_graph()
    labelled = Graph(path.edge_index, path.size, edge_attr=torch.rand(path.num_edges, 2))
    typed = Graph(path.edge_index, path.size, edge_type=torch.arange(path.num_edges) % 2)
    one, two = torch.randn(4, 2), torch.randn(2, 4, 2)
    image, images = torch.randn(1, 2, 4, 4), torch.randn(2, 2, 4, 4)
    return [
        (GConv(conv2d(2, 2, 3)), images, None, grid),
        (GConv(conv_transpose2d(2, 2, 3)), images, None, grid),
        (GConv(conv2d(4, 4, 3, groups=2)), torch.randn(2, 4, 4, 4), None, grid),
        (GConv(separable(2, 2, 3)), images, None, ("native", *grid)),
        (GConv(avg_pool2d(2)), images, None, ("native", *grid)),
        *[(GConv(gcn(2, 2)), x, path, sparse) for x in (one, two)],
        *[(GConv(sage(2, 2)), x, path, sparse) for x in (one, two)],
        *[(GConv(relational(2, 2, num_relations=2)), x, typed, sparse) for x in (one, two)],
        *[(GConv(gin()), x, path, sparse) for x in (one, two)],
        (GConv(gat(2, 2, heads=2)), one, path, sparse),
        (GConv(gatv2(2, 2, heads=2)), one, path, sparse),
        (GConv(monet(2, 2, dim=2, kernel_size=2)), one, labelled, sparse),
        (GConv(agnn()), one, path, sparse),
        *[(GConv(cheb(2, 2, k=3)), x, path, recurrence) for x in (one, two)],
        *[(GConv(appnp(k=3)), x, path, recurrence) for x in (one, two)],
        (GConv(spectral(2, 2, k=2)), one, path, ("gft",)),
        (GConv(conv2d(2, 2, 3)), image, None, ("native",)),
        (GConv(conv1d(2, 2, 3)), image[..., 0], None, ("native",)),
    ]


def overheads(curves: Mapping[str, Curve]) -> Generator[Steps, dict[str, float], dict[str, float]]:
    """The time of calls with tiny inputs, minus the predicted time of their work; `curves` are measured by then."""
    steps: Steps = {}
    work = {}
    for layer, x, graph, names in _tiny():
        signal, place = layer._enter(x, graph)
        call = layer._call(signal)
        mixing, W = call.mixing, call.W
        axes, signals = 0 if graph else x.ndim - 2, len(x) if x.ndim > 2 else 1
        for suffix, dx, dw in (("", False, False), (" weight", False, True), (" back", True, True)):
            with torch.set_grad_enabled(dw):
                S = layer._basis(place, call)
            leaf = None if W is None else W.detach().requires_grad_(dw)
            given = (x if axes else signal).detach().requires_grad_(dx)
            ds = dw and bool(S.learned)
            if not (dx or ds or (dw and W is not None)):
                dw = False  # no gradient is needed, so there is no backward pass
            problem = Problem(signals, x.shape[1 if axes else -1], mixing.channels(x.shape[1 if axes else -1]), 4)
            problem = replace(problem, dx=dx, dw=dw and W is not None, last=not axes, ds=ds)
            words = form(S, mixing, signals)
            for option in LOWERINGS:
                if option.name not in names or option.refuses(S, mixing) is not None:
                    continue
                plain = option.name == "native" and words not in (" window", " separable", " grid line")
                name = f"{option.name}{'' if plain else words}{suffix}"
                steps[name] = step_of(option, S, Call(given, mixing, leaf), dw, axes)
                work[name] = option.cost(S, mixing, problem).work
    took = yield steps
    known = Rates(curves, {})
    spent = {name: sum(known.seconds(*astuple(w)) for w in work[name]) for name in steps}
    return {name: max(SMALL, 0.3 * took[name], took[name] - spent[name]) for name in steps}
