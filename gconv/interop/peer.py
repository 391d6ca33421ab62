"""Descriptions of layers of torch and PyG (`Peer`), and how such a layer calls the engine.

A converted layer is still the layer it was: its class derives from the peer's, so its parameters keep their names and
places (state_dict, optimiser groups, hooks, parametrizations, pruning), and only `forward` is new. That reads GConv's
weight off the layer's own parameters, a view or a differentiable function of them, and lets the engine run. A call
that the description does not cover goes to the peer's own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gconv.basis import Basis
from gconv.caches import function
from gconv.call import Call
from gconv.domains import Graph
from gconv.interop.repeated import Repeated
from gconv.kernels import at_trace_time, leave
from gconv.kernels.transforms import PLAIN
from gconv.module import GConv
from gconv.plan import plan
from gconv.spec import OperatorSpec

Weights = dict[str, Tensor | None]


class LeftAlone(Exception):
    """The layer cannot be described exactly; the message is the reason, for the report."""


def never(layer: Any) -> bool:
    """The answer of peers that have no such case."""
    return False


@dataclass(frozen=True)
class Peer:
    """How one class of foreign layers maps onto a GConv.

    Args:
        spec: the operator of a layer; raises LeftAlone where its arguments are not covered.
        weights: GConv's parameters as functions of the layer's; names that are missing are None.
        call: forward with the peer's own signature; None hands the call to the peer's forward.
        notes: the conventions worth naming.
        affine: x gets a last channel of ones, so that a bias that is mixed like a channel needs no form of its own.
        inner: children that are layers of their own (an MLP after the convolution) and are converted as such.
        after: what follows the linear map, in words; such a layer has no LinearMap.
        settle: the spec and the domain of a LinearMap, where they depend on each other.
    """

    spec: Callable[[Any], OperatorSpec]
    weights: Callable[[Any], Weights]
    call: Callable[..., Tensor | None]
    notes: Callable[[Any], list[str]] = lambda layer: []
    affine: Callable[[Any], bool] = never
    inner: tuple[str, ...] = ()
    after: Callable[[Any], str | None] = lambda layer: None
    settle: Callable[[Any, OperatorSpec, Any], tuple[OperatorSpec, Any]] = lambda layer, spec, domain: (spec, domain)


class Unweighted(GConv):
    """A GConv without parameters: it borrows them, call by call, from the layer it stands in."""

    def __init__(self, spec: OperatorSpec) -> None:
        super().__init__(spec, device="meta")
        self._like = torch.empty(0)
        self.formats: dict[Hashable, tuple[int, ...]] = {}  # strides of the peer's results, by what it was given
        for name in self._parameters:
            self._parameters[name] = None

    def borrow(self, weights: Weights) -> GConv:
        """A GConv with these weights; it shares all else with this one."""
        layer = object.__new__(GConv)
        layer.__dict__.update(self.__dict__, _parameters={**self._parameters, **weights})
        return layer

    def like(self, spec: OperatorSpec) -> Unweighted:
        """The same for another operator."""
        return unweighted(spec)

    def _get_name(self) -> str:
        return "GConv"

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        raise TypeError("This GConv has the weights of the converted layer around it: call that layer.")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _unweighted, (self.spec, self.training)


def _unweighted(spec: OperatorSpec, training: bool) -> Unweighted:
    return Unweighted(spec).train(training)


@function("engines of calls of converted layers", 256)
def unweighted(spec: OperatorSpec) -> Unweighted:
    """For specs that a call decides."""
    return Unweighted(spec)


class ConvertedState:
    """What a converted layer holds besides the class it always was; `gconv` is the GConv that runs it."""

    gconv: Unweighted | None  # None where an argument that was changed later is not covered
    peer: Peer

    _cached_graph: Graph | None = None  # of PyG's layers that keep their first graph
    _last_graph: Graph | None = None  # the graph of the call before, where it is put together from several tensors
    _repeated: Repeated | None = None  # the signal of the call before, of models with constant_inputs
    _changed: bool = False  # whether an attribute was set, so that the spec must be made again


def original_class(cls: type) -> type:
    """The class of a layer before its conversion: the first in line that is no class of converted layers."""
    return next(kind for kind in cls.__mro__ if not issubclass(kind, ConvertedState))


def base_class(layer: nn.Module) -> type:
    """The class of a layer without what conversion and parametrizations put before it."""
    cls = type(layer)
    return original_class(cls.__mro__[1] if parametrize.is_parametrized(layer) else cls)


def engine(layer: Any, make: Callable[..., OperatorSpec], *arguments: Any) -> Unweighted:
    """The GConv of a layer for a spec that a call decides."""
    if torch.compiler.is_dynamo_compiling():
        found: Unweighted = getattr(layer, _engine(layer, make, *arguments))
        return found
    return layer.gconv.like(make(*arguments))


@at_trace_time
def _engine(layer: Any, make: Callable[..., OperatorSpec], *arguments: Any) -> str:
    """Where that GConv was left, for a compiler."""
    spec = make(*arguments)
    return leave(layer, f"gconv_{spec.name}", layer.gconv.like(spec))


def run(
    layer: Any,
    x: Any,
    domain: Any = None,
    other: Unweighted | None = None,
    weights: Weights | None = None,
    **edges: Tensor | None,
) -> Tensor:
    """A converted layer on x, or on a pair, by gconv; perhaps as another operator, or with other weights."""
    gconv, peer = layer.gconv if other is None else other, layer.peer
    affine = peer.affine is not never and peer.affine(layer)
    repeated = layer._repeated
    if repeated is not None and type(x) in PLAIN:
        x = repeated.take(x, with_ones if affine else None)
    elif affine:
        x = with_ones(x)
    y: Tensor = gconv.borrow(peer.weights(layer) if weights is None else weights)(x, domain, **edges)
    return y if domain is None else y.contiguous()


def run_on(gconv: GConv, S: Basis, call: Call) -> Tensor:
    """A layer's operator, on a structure that is given."""
    return gconv._cast(plan(S, call).chosen.run(S, call))


def with_ones(x: Any) -> Any:
    """x with a last channel of ones; both of a pair."""
    if isinstance(x, tuple):
        return tuple(map(with_ones, x))
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)
