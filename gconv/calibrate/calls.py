"""What a call of each lowering takes by itself."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import astuple

import torch
from torch import Tensor

from gconv.calibrate.sections import PATH, SMALL, Steps
from gconv.domains import Graph
from gconv.lowering import LOWERINGS
from gconv.lowering.base import Problem
from gconv.mixing import plain
from gconv.module import GConv
from gconv.operators import cheb, conv2d, gcn, spectral
from gconv.plan import step_of
from gconv.rates import Curve, Rates


def _tiny() -> list[tuple[str, GConv, Tensor, Graph | None, tuple[str, ...]]]:
    """Layers on next to nothing, and the lowerings whose overhead they show, by the form that `plan.form` names."""
    sparse = ("sparse:aggregate", "sparse:transform")
    grid = ("im2col", "fft", "dense", *sparse)
    recurrence = ("recurrence:aggregate", "recurrence:transform")
    return [
        ("", GConv(conv2d(2, 2, 3)), torch.randn(1, 2, 4, 4), None, ("native",)),
        (" grid", GConv(conv2d(2, 2, 3)), torch.randn(2, 2, 4, 4), None, grid),
        (" groups", GConv(conv2d(4, 4, 3, groups=2)), torch.randn(2, 4, 4, 4), None, grid),
        ("", GConv(gcn(2, 2)), torch.randn(4, 2), PATH, (*sparse, "dense")),
        (" terms", GConv(cheb(2, 2, k=3)), torch.randn(4, 2), PATH, (*recurrence, "dense")),
        ("", GConv(spectral(2, 2, k=2)), torch.randn(4, 2), PATH, ("gft",)),
    ]


def overheads(curves: Mapping[str, Curve]) -> Generator[Steps, dict[str, float], dict[str, float]]:
    """What a call on next to nothing takes beyond its work, which `curves` price by then."""
    steps: Steps = {}
    work = {}
    for form, layer, x, graph, names in _tiny():
        signal, place = layer._enter(x, graph)
        S = layer._basis(place, signal)
        mixing, W = plain(layer.spec.mixing, layer.weight)
        assert W is not None
        axes = 0 if graph else x.ndim - 2
        for suffix, dx, dw in (("", False, False), (" weight", False, True), (" back", True, True)):
            leaves = W.detach().requires_grad_(dw), (x if axes else signal).detach().requires_grad_(dx)
            problem = Problem(len(x) if axes else 1, x.shape[1], x.shape[1], 4, dx=dx, dw=dw, last=not axes)
            for option in LOWERINGS:
                if option.name in names:
                    name = option.name + form + suffix
                    steps[name] = step_of(option, S, mixing, *leaves, dw, axes)
                    work[name] = option.cost(S, mixing, problem).work
    took = yield steps
    known = Rates(curves, {})
    spent = {name: sum(known.seconds(*astuple(w)) for w in work[name]) for name in steps}
    return {name: max(SMALL, 0.3 * took[name], took[name] - spent[name]) for name in steps}
