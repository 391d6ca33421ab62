"""The equivariance error of a layer under a symmetry."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol

import torch
from torch import Tensor

from gconv.analysis.calls import Model, call, check_model, undisturbed
from gconv.analysis.numbers import vector_norm, wider
from gconv.arguments import checked, kind_of, plural, shown
from gconv.domains import Graph, Grid, read_graph
from gconv.linear import Map


class Action(Protocol):
    """A symmetry: its action on a signal and on the domain of the signal."""

    def signal(self, x: Tensor, sites: int) -> Tensor:
        """The transformed signal; its sites are the last `sites` axes (grids) or the last axis but one (graphs)."""
        ...

    def domain(self, domain: Any) -> Any:
        """The transformed domain."""
        ...


def _check_numbers(wanted: str, numbers: Any) -> None:
    """Raises a TypeError unless `numbers` is a tuple or list of integers."""
    whole = isinstance(numbers, tuple | list) and all(isinstance(n, Integral) for n in numbers)
    if not whole or any(isinstance(n, bool) for n in numbers):
        raise TypeError(f"{wanted}, but {shown(numbers)} was given.")


@dataclass(frozen=True)
class Shift:
    """Circular translation on a grid.

    Args:
        steps: number of sites along each axis.
        out: number of sites along each axis of the output, if different (divided by the stride).

    >>> Shift((0, 1)).signal(torch.tensor([[1, 2, 3]]), 3)
    tensor([[3, 1, 2]])
    """

    steps: tuple[int, ...]
    out: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_numbers("Shift takes steps along each axis, such as Shift((1, 1))", self.steps)
        if self.out is not None:
            _check_numbers("Shift takes out, steps of the output along each axis, such as out=(1, 1)", self.out)

    def signal(self, x: Tensor, sites: int) -> Tensor:
        return x.roll(self.steps, tuple(range(-len(self.steps), 0)))

    def domain(self, domain: Any) -> Any:
        return domain


@dataclass(frozen=True)
class Flip:
    """Reflection along axes of a grid, counted from the last (-1).

    >>> Flip().signal(torch.tensor([[1, 2, 3]]), 3)
    tensor([[3, 2, 1]])
    """

    axes: tuple[int, ...] = (-1,)

    def __post_init__(self) -> None:
        _check_numbers("Flip takes axes, such as Flip((-1,))", self.axes)

    def signal(self, x: Tensor, sites: int) -> Tensor:
        return x.flip(self.axes)

    def domain(self, domain: Any) -> Any:
        return domain


@dataclass(frozen=True)
class Rot90:
    """Rotation of the last two axes of a grid by multiples of 90 degrees.

    >>> Rot90().signal(torch.tensor([[1, 2], [3, 4]]), 4)
    tensor([[2, 4],
            [1, 3]])
    """

    quarters: int = 1

    def __post_init__(self) -> None:
        _check_numbers("Rot90 takes a number of quarter turns, such as Rot90(1)", (self.quarters,))

    def signal(self, x: Tensor, sites: int) -> Tensor:
        return x.rot90(self.quarters, (-2, -1))

    def domain(self, domain: Any) -> Any:
        return domain


@dataclass(frozen=True)
class Permutation:
    """A permutation of the nodes of signal and graph: node v becomes node order[v].

    >>> Permutation((2, 0, 1)).signal(torch.tensor([[1], [2], [3]]), 3).flatten()
    tensor([2, 3, 1])
    """

    order: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_numbers("Permutation takes the new number of each node, such as Permutation((2, 0, 1))", self.order)
        if sorted(self.order) != list(range(len(self.order))):
            raise ValueError(
                f"A permutation of {plural(len(self.order), 'node')} must contain each index once, but it is "
                f"{self.order}."
            )

    def signal(self, x: Tensor, sites: int) -> Tensor:
        order = torch.tensor(self.order, device=x.device)
        if len(order) != x.shape[-2]:
            raise ValueError(
                f"The permutation has {plural(len(order), 'number')}, but the signal has {plural(x.shape[-2], 'node')}."
            )
        return torch.empty_like(x).index_copy(-2, order, x)

    def domain(self, domain: Any) -> Any:
        return domain.permute(torch.tensor(self.order, device=domain.device)) if isinstance(domain, Graph) else domain


NAMED = ("shift", "flip", "rot90", "permutation")


@checked
def equivariance_error(model: Model, action: Action | str, x: Tensor, domain: Any = None, *, seed: int = 0) -> float:
    """The relative equivariance error of a layer under an action, at a signal.

    Equation: |f(g x; g D) - g f(x; D)| / |g f(x; D)|, with g D the transformed domain.

    Meaning: zero for shifts of a convolution with circular padding, but not with zero padding; zero for permutations of
    the nodes of any graph layer. The model may be nonlinear, or a whole network. A Map has a fixed domain, so the error
    is that of A g - g A, which is zero if g is a symmetry of its graph or grid.

    Cost: two forward passes.

    Args:
        model: a layer, nn.Sequential of layers, any callable, or a Map (whose signals have sites before channels). In
            training mode, running statistics are restored afterwards.
        action: `Shift`, `Flip`, `Rot90`, `Permutation`, an object with the same two methods, or a name: "shift" (one
            site along each axis), "flip" (the last axis), "rot90", "permutation" (a random one). Shift, Flip and Rot90
            act on grids only.
        x: a signal in the model's layout; the output is transformed in the same layout.
        domain: the graph, for layers on graphs; for a Map on a grid, its `Grid`.
        seed: of the random permutation.

    Raises:
        TypeError: if the model, the action or x is of another type.
        ValueError: if the name is unknown, the action is for grids but the domain is a graph, or the action changes the
            shape of the output.

    >>> from gconv import GConv
    >>> from gconv.operators import conv2d
    >>> x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    >>> wrapping = GConv(conv2d(2, 3, 3, padding=1, padding_mode="circular"), dtype=torch.float64)
    >>> equivariance_error(wrapping, "shift", x) < 1e-12, equivariance_error(wrapping, "rot90", x) > 0.1
    (True, True)

    Source: Lenc and Vedaldi, Understanding Image Representations by Measuring Their Equivariance, CVPR 2015.
    """
    check_model(model, "equivariance_error")
    if not isinstance(x, Tensor) or x.ndim < 2 or not (x.is_floating_point() or x.is_complex()):
        given = f"a tensor {tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else kind_of(x)
        raise TypeError(f"equivariance_error takes a signal x of floating point numbers, but {given} was given.")
    if not isinstance(action, str) and not (callable(getattr(action, "signal", None)) and not isinstance(action, type)):
        raise TypeError(
            f"action must be one of {', '.join(NAMED)}, or an object such as Shift((1, 1)), but {kind_of(action)} was "
            "given."
        )
    grid = domain if isinstance(domain, Grid) else None
    graph = None if grid or domain is None else read_graph(domain, x.shape[-2])
    sites = x.ndim - 2 if graph is None and not isinstance(model, Map) else 1
    if isinstance(model, Map) and grid is not None:
        sites = grid.ndim
    act = _named(action, x.shape[-2], sites, seed) if isinstance(action, str) else action
    if isinstance(act, Shift | Flip | Rot90) and (graph is not None or (isinstance(model, Map) and grid is None)):
        raise ValueError(
            f"{type(act).__name__} acts on grids: on a graph use 'permutation', and for a Map on a grid give its Grid "
            "as the domain."
        )
    after = Shift(act.out) if isinstance(act, Shift) and act.out is not None else act

    def move(signal: Tensor, by: Action, place: Grid | None) -> Tensor:
        if place is None:
            return by.signal(signal, sites)
        return by.signal(signal.mT.unflatten(-1, place.shape), sites).flatten(-place.ndim).mT

    with torch.no_grad(), undisturbed(model):
        y = call(model, x, graph)
        moved = call(model, move(x, act, grid), act.domain(graph) if graph is not None else None)
        want = move(y, after, grid)
    if moved.shape != want.shape:
        raise ValueError(
            f"The transformed output has shape {tuple(want.shape)}, but the output of the transformed signal has shape "
            f"{tuple(moved.shape)}; use a square grid, or an action that preserves shapes."
        )
    size = vector_norm(want)
    error = vector_norm(moved.to(wider(moved.dtype)) - want.to(wider(want.dtype)))
    return error / size if size else error


def _named(action: str, nodes: int, sites: int, seed: int) -> Action:
    if action == "shift":
        return Shift((1,) * sites)
    if action == "flip":
        return Flip()
    if action == "rot90":
        return Rot90()
    if action == "permutation":
        return Permutation(tuple(torch.randperm(nodes, generator=torch.Generator().manual_seed(seed)).tolist()))
    raise ValueError(f"There is no action named {action!r}; there are {', '.join(NAMED)}.")
