"""What is known of a foreign layer, as data; and the layer that runs through gconv in its place.

A converted layer is still the layer it was: its class derives from the peer's, so its parameters keep their names and
places (state_dict, optimiser groups, hooks, parametrizations, pruning), and only `forward` is new. That reads GConv's
weight off the layer's own parameters, a view or a differentiable function of them, and lets the engine run. A call
that the description does not cover goes to the peer's own forward.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gconv.basis import Basis
from gconv.caches import function
from gconv.call import Call
from gconv.domains import Graph
from gconv.errors import InputError, both
from gconv.interop.repeated import Repeated
from gconv.kernels import at_trace_time, is_jit_tracing, leave, tracing
from gconv.kernels.transforms import PLAIN
from gconv.linear import Map
from gconv.module import NOT_SCRIPTABLE, GConv
from gconv.plan import Plan, plan
from gconv.spec import OperatorSpec, OutsideFamily

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


class Converted:
    """What a converted layer is besides the class it always was; `gconv` is the GConv that runs it."""

    gconv: Unweighted | None  # None where an argument that was changed later is not covered
    peer: Peer

    _cached_graph: Graph | None = None  # of PyG's layers that keep their first graph
    _last_graph: Graph | None = None  # the graph of the call before, where it is put together from several tensors
    _repeated: Repeated | None = None  # the signal of the call before, of models with constant_inputs
    _changed: bool = False  # whether an attribute was set, so that the spec must be made again

    @property
    def spec(self) -> OperatorSpec:
        """The operator that the layer runs as."""
        return self._engine().spec

    def at(self, domain: Any, x: Tensor | None = None) -> Map:
        """The layer on a domain as a `LinearMap`; see `gconv.as_linear_map`."""
        from gconv.interop.maps import as_linear_map

        assert isinstance(self, nn.Module)
        return as_linear_map(self, domain, x)

    def plan(self, *args: Any, lowering: str | None = None, measure: bool | int = False, **kwargs: Any) -> Plan:
        """How `layer(*args, **kwargs)` will run: arguments as the layer itself takes them, options as `GConv.plan`.

        A `Graph` in place of an edge_index is taken, too.

        Raises:
            OutsideFamily: if such a call goes to the peer's own forward.
        """
        from gconv.interop.layers import EngineCall, engine_call

        assert isinstance(self, nn.Module)
        engine = self._engine()
        if len(args) == 2 and isinstance(args[1], Graph):
            call = EngineCall(engine.borrow(self.peer.weights(self)), args[0], args[1], kwargs)
        else:
            call = engine_call(self, *args, **kwargs)
        return call.gconv.plan(call.x, call.domain, lowering=lowering, measure=measure, **call.edges)

    def _engine(self) -> Unweighted:
        if self._changed:
            renew(self)
        if self.gconv is None:
            raise OutsideFamily("This layer has been changed since it was converted, and runs without gconv now.")
        return self.gconv

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script asks for first."""
        raise TypeError(NOT_SCRIPTABLE.format(f"a converted {type(self).__name__}"))

    def __setattr__(self, name: str, value: Any) -> None:
        """An argument of the peer that is changed later (`layer.dropout = 0.6`) is heeded."""
        if name[0] != "_" and name not in ("training", "gconv", "report"):
            old = getattr(self, name, None)
            if not (isinstance(old, Tensor) and isinstance(value, Tensor) and same_shape(old, value)):
                self.__dict__["_changed"] = True
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        state = {k: v for k, v in reduced[2].items() if k != "_last_graph" and not k.startswith("_traced_")}
        if self._repeated is not None:
            state["_repeated"] = Repeated()
        return (_blank, (type(self).__mro__[2],), state, *reduced[3:])


def same_shape(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors, neither of them still to be initialised, have one shape."""
    return not is_lazy(a) and not is_lazy(b) and a.shape == b.shape


def _blank(cls: type) -> Any:
    made: Any = convertible(cls)
    return made.__new__(made)


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
    return y


def run_on(gconv: GConv, S: Basis, call: Call) -> Tensor:
    """A layer's operator, on a structure that is given."""
    return gconv._cast(plan(S, call).chosen.run(S, call))


def with_ones(x: Any) -> Any:
    """x with a last channel of ones; both of a pair."""
    if isinstance(x, tuple):
        return tuple(map(with_ones, x))
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)


@function("classes of converted layers", stays=True)
def convertible(cls: type) -> type:
    """The class of converted layers that derives from a peer's class."""
    from gconv.interop.peers import find, is_pyg, obstacle

    peer = find(cls)
    original = cls.forward  # type: ignore[attr-defined]
    on_graphs = any(map(is_pyg, cls.__mro__))

    @wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if on_graphs and torch.compiler.is_dynamo_compiling():
            if self._changed:
                _renewed(self)
            y = peer.call(self, *args, **kwargs) if _ready(self) else None
            return original(self, *args, **kwargs) if y is None else y
        if self._changed:
            renew(self)
        y = None
        if self.gconv is not None and obstacle(self, peer.inner) is None:
            try:
                if is_jit_tracing():
                    with tracing():
                        y = peer.call(self, *args, **kwargs)
                else:
                    y = peer.call(self, *args, **kwargs)
            except LeftAlone:  # a part was exchanged
                y = None
            except (ValueError, TypeError) as error:
                if on_graphs:
                    raise refusal(self, original, args, kwargs, error) from None
                y = None  # torch's layer answers, or raises the error that it always raised
        if y is not None:
            if self._cached_graph is not None:
                _fill_cache(self, original, args, kwargs)
            return y
        if not on_graphs:
            return original(self, *args, **kwargs)
        try:
            return original(self, *args, **kwargs)
        except BARE as error:
            raise both(InputError, type(error))(f"{cls.__name__} refuses this call{said(error)}.") from error

    forward.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]

    def reset_parameters(self: Any) -> None:
        self._cached_graph = None
        for name in CACHES:  # which some classes of PyG keep
            if hasattr(self, name):
                setattr(self, name, None)
        cls.reset_parameters(self)  # type: ignore[attr-defined]

    body = {"forward": forward, "peer": peer, "__module__": cls.__module__, "__doc__": cls.__doc__}
    if hasattr(cls, "reset_parameters"):
        body["reset_parameters"] = reset_parameters
    return type(cls.__name__, (Converted, cls), body)


CACHES = ("_cached_edge_index", "_cached_adj_t")


def _fill_cache(layer: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Let PyG put the graph that a layer keeps where its users look for it, once."""
    if all(getattr(layer, name, None) is None for name in CACHES):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            original(layer, *args, **kwargs)


BARE = (AssertionError, AttributeError, IndexError, KeyError, NotImplementedError)


def said(error: Exception) -> str:
    """What a peer's error says, its first line, as the end of a sentence."""
    lines = str(error).strip().splitlines()
    return f": {lines[0].rstrip('.')}" if lines else "; an argument that it needs is missing, or is of another kind"


def refusal(layer: Any, original: Callable[..., Any], args: Any, kwargs: Any, error: Exception) -> Exception:
    """gconv's error about a call, of the class, too, that the peer raises for it, if the peer refuses it as well."""
    twin = copy.copy(layer)
    twin.__dict__.update(_parameters=dict(layer._parameters), _buffers=dict(layer._buffers))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            original(twin, *args, **kwargs)
    except Exception as theirs:
        if type(theirs) is TypeError and type(error) is TypeError and "argument" in str(theirs):
            return theirs  # names an argument that is missing or unknown
        try:
            return both(type(error), type(theirs))(str(error))
        except TypeError:  # classes that do not combine
            return error
    return error


@at_trace_time
def _renewed(layer: Any) -> None:
    """For a compiler."""
    renew(layer)


@at_trace_time
def _ready(layer: Any) -> str | None:
    """Whether a layer runs in gconv, for a compiler: its parts are looked at once."""
    from gconv.interop.peers import obstacle

    return "yes" if layer.gconv is not None and obstacle(layer, layer.peer.inner) is None else None


def renew(layer: Any) -> None:
    """Make the spec again; where the new arguments are not covered, the peer's own forward runs from now on."""
    from gconv.interop.peers import describe

    layer._changed = False
    try:
        spec = describe(layer)[1]
    except LeftAlone:
        layer.gconv = None
        return
    if layer.gconv is None or spec != layer.gconv.spec:
        layer.gconv = Unweighted(spec).train(layer.training)
