"""Descriptions of layers of torch and PyG (`Peer`), and how such a layer calls the engine.

The class of a converted layer derives from the original class, so its parameters keep their names and identity
(state_dict, optimiser groups, hooks, parametrizations, pruning), and only `forward` is replaced. The new forward
computes the weight of a GConv as a view or differentiable function of the layer's parameters and runs the engine. Calls
that the description does not cover run in the original forward.
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
UNKNOWN = "not a layer that gconv supports"  # the reason where no other is known


class LeftAlone(Exception):
    """Raised if a layer cannot be described exactly and is left unchanged; the message is the reason in reports."""


def never(layer: Any) -> bool:
    """The default of `Peer.affine`."""
    return False


@dataclass(frozen=True)
class Peer:
    """The description of one class of layers of another library in terms of a GConv.

    Args:
        spec: the operator of a layer; raises LeftAlone if its arguments are not supported.
        weights: the parameters of the GConv as functions of the layer's; missing names are None.
        call: forward with the layer's signature; it returns None if the original forward has to run.
        notes: conventions of the layer, for reports.
        affine: whether a channel of ones is appended to x, which represents biases that S acts on.
        inner: submodules that are separate layers (an MLP after the convolution) and are converted separately.
        after: a description of what follows the linear map; such a layer has no LinearMap.
        settle: the spec and the domain of a LinearMap, if they depend on each other.
        method: the method that runs in gconv instead.
    """

    spec: Callable[[Any], OperatorSpec]
    weights: Callable[..., Weights]
    call: Callable[..., Tensor | None]
    notes: Callable[[Any], list[str]] = lambda layer: []
    affine: Callable[[Any], bool] = never
    inner: tuple[str, ...] = ()
    after: Callable[[Any], str | None] = lambda layer: None
    settle: Callable[[Any, OperatorSpec, Any], tuple[OperatorSpec, Any]] = lambda layer, spec, domain: (spec, domain)
    method: str = "forward"


class Unweighted(GConv):
    """A GConv without parameters, which are passed to `borrow` for each call."""

    def __init__(self, spec: OperatorSpec) -> None:
        super().__init__(spec, device="meta")
        self._like = torch.empty(0)
        self.formats: dict[Hashable, tuple[int, ...]] = {}  # strides of the peer's results, by shape and layout of x
        for name in self._parameters:
            self._parameters[name] = None

    def borrow(self, weights: Weights) -> GConv:
        """A GConv with these weights that shares all other state with this one."""
        layer = object.__new__(GConv)
        parameters = {**self._parameters, **weights}
        if torch.compiler.is_dynamo_compiling():  # that of torch 2.11 traces single items of __dict__ only
            for name in _names(self).split():
                layer.__dict__[name] = parameters if name == "_parameters" else self.__dict__[name]
        else:
            layer.__dict__.update(self.__dict__, _parameters=parameters)
        return layer

    def like(self, spec: OperatorSpec) -> Unweighted:
        """The same for another operator."""
        return unweighted(spec)

    def _get_name(self) -> str:
        return "GConv"

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        raise TypeError("This GConv uses the weights of the converted layer that contains it: call that layer.")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _unweighted, (self.spec, self.training)


@at_trace_time
def _names(layer: Any) -> str:
    """The names of the attributes, separated by spaces."""
    return " ".join(vars(layer))


def _unweighted(spec: OperatorSpec, training: bool) -> Unweighted:
    return Unweighted(spec).train(training)


@function("engines of calls of converted layers", 256)
def unweighted(spec: OperatorSpec) -> Unweighted:
    """Cached engines for specs that depend on the call."""
    return Unweighted(spec)


class ConvertedState:
    """The state of a converted layer; `gconv` is the GConv that runs it."""

    gconv: Unweighted | None = None  # None if the layer was changed after conversion and is no longer supported
    peer: Peer

    _cached_graph: Graph | None = None  # of PyG layers with cached=True: their first graph
    _last_graph: Graph | None = None  # the graph of the previous call, if it is built from several tensors
    _repeated: Repeated | None = None  # the signal of the previous call, for models with constant_inputs
    _changed: bool = False  # whether an attribute was set, so that the spec must be recomputed


def original_class(cls: type) -> type:
    """The class of a layer before its conversion: the first in its MRO that is not a class of converted layers."""
    return next(kind for kind in cls.__mro__ if not issubclass(kind, ConvertedState))


def base_class(layer: nn.Module) -> type:
    """The class of a layer without the subclasses added by conversion and parametrizations."""
    cls = type(layer)
    return original_class(cls.__mro__[1] if parametrize.is_parametrized(layer) else cls)


def engine(layer: Any, make: Callable[..., OperatorSpec], *arguments: Any) -> Unweighted:
    """The engine of a layer for a spec that depends on the call."""
    if torch.compiler.is_dynamo_compiling():
        found: Unweighted = getattr(layer, _engine(layer, make, *arguments))
        return found
    return layer.gconv.like(make(*arguments))


@at_trace_time
def _engine(layer: Any, make: Callable[..., OperatorSpec], *arguments: Any) -> str:
    """The attribute name of that engine, evaluated during tracing by a compiler."""
    spec = make(*arguments)
    return leave(layer, f"gconv_{spec.name}_{hash(spec) & (1 << 64) - 1:x}", layer.gconv.like(spec))


def run(
    layer: Any,
    x: Any,
    domain: Any = None,
    other: Unweighted | None = None,
    weights: Weights | None = None,
    **edges: Tensor | None,
) -> Tensor:
    """Run a converted layer on x, or on a pair; optionally as another operator or with other weights."""
    gconv, peer = layer.gconv if other is None else other, layer.peer
    affine = peer.affine is not never and peer.affine(layer)
    repeated = layer._repeated
    if repeated is not None and type(x) in PLAIN:
        x = repeated.take(x, with_ones if affine else None)
    elif affine:
        x = with_ones(x)
    own = gconv.borrow(peer.weights(layer) if weights is None else weights)
    y: Tensor = own.forward(x, domain, **edges)  # type: ignore[arg-type]  # hooks on all modules ran for the layer
    return y if domain is None else y.contiguous()


def run_on(gconv: GConv, S: Basis, call: Call) -> Tensor:
    """Run a layer's operator with a given structure."""
    return gconv._cast(plan(S, call).chosen.run(S, call))


def with_ones(x: Any) -> Any:
    """x, or both elements of a pair, with an additional last channel of ones."""
    if isinstance(x, tuple):
        return tuple(map(with_ones, x))
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)
