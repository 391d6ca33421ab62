"""Converted layers: subclasses of the original torch or PyG classes whose forward runs in gconv."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from gconv.arguments import plural, shown
from gconv.caches import function
from gconv.domains import Graph
from gconv.errors import InputError, both
from gconv.interop import peer as _peer
from gconv.interop.layers import EngineCall, engine_call
from gconv.interop.maps import as_linear_map
from gconv.interop.peer import ConvertedState, LeftAlone, Unweighted, base_class, original_class
from gconv.interop.peers import METHODS, describe, find, is_pyg, obstacle
from gconv.interop.repeated import Repeated
from gconv.kernels import at_trace_time, eagerly, is_jit_tracing, may_interrupt, tracing
from gconv.linear import Map
from gconv.module import NOT_SCRIPTABLE
from gconv.plan import Plan
from gconv.spec import OperatorSpec, OutsideFamily


class LikeItsOriginal(type):
    """The metaclass of the classes of converted layers: they equal the original class.

    So tools that choose layers by `type(layer) == nn.Linear`, or by a dictionary or set of classes, treat converted
    layers as the originals: initialisation by `model.apply`, torch.ao.quantization.
    """

    def __eq__(cls, other: object) -> bool:
        return cls is other or _compared(cls) is (_compared(other) if isinstance(other, LikeItsOriginal) else other)

    def __hash__(cls) -> int:
        return type.__hash__(_compared(cls))


def _compared(cls: type) -> type:
    """The original of a class made by `convertible`; for a subclass (a parametrised layer), the class itself."""
    return original_class(cls) if "peer" in vars(cls) else cls


class Converted(ConvertedState):
    """Mixin of converted layers, placed before the original class in the method resolution order."""

    @property
    def spec(self) -> OperatorSpec:
        """The operator that the layer runs as."""
        return self._engine().spec

    def at(self, domain: Any, x: Tensor | None = None) -> Map:
        """The layer on a domain as a `LinearMap`; see `gconv.as_linear_map`."""
        assert isinstance(self, nn.Module)
        return as_linear_map(self, domain, x)

    def plan(self, *args: Any, lowering: str | None = None, measure: bool | int = False, **kwargs: Any) -> Plan:
        """The plan of `layer(*args, **kwargs)`: arguments as for the layer itself, options as for `GConv.plan`.

        A `Graph` is accepted instead of an edge_index, too.

        Raises:
            OutsideFamily: if this call runs in the original forward.
        """
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
            raise OutsideFamily("This layer was changed since it was converted, and now runs without gconv.")
        return self.gconv

    def __prepare_scriptable__(self) -> Any:
        """Called by torch.jit.script, which cannot compile converted layers."""
        raise TypeError(NOT_SCRIPTABLE.format(f"a converted {type(self).__name__}"))

    def __setattr__(self, name: str, value: Any) -> None:
        """Detects changes of arguments after conversion (`layer.dropout = 0.6`)."""
        if name == "gconv":  # not a submodule: tools that list submodules find those of the original
            self.__dict__[name] = value
            return
        if name in NAMES or (name == "qconfig" and value is not None):  # quantization requires the class itself
            undo(self)
            nn.Module.__setattr__(self, name, value)  # type: ignore[arg-type]
            return
        if name == "training" and self.__dict__.get("gconv") is not None:
            self.gconv.training = value  # type: ignore[union-attr]
        if may_change_spec(name):
            old = getattr(self, name, None)
            if not (isinstance(old, Tensor) and isinstance(value, Tensor) and same_shape(old, value)):
                self.__dict__["_changed"] = True
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Detects the removal of attributes, such as a forward that was replaced on the instance."""
        super().__delattr__(name)
        if may_change_spec(name):
            self.__dict__["_changed"] = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Converts and moves the engine, too, which stores the dtype of a layer without weights."""
        done: Any = super()._apply(fn, recurse)  # type: ignore[misc]
        if self.gconv is not None:
            self.gconv._apply(fn, recurse)
        return done

    def __setstate__(self, state: dict[str, Any]) -> None:
        old = state["_modules"]
        if "gconv" in old:  # layers pickled by older versions: the engine was a submodule
            state = {**state, "_modules": {k: m for k, m in old.items() if k != "gconv"}, "gconv": old["gconv"]}
        super().__setstate__(state)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        if len(reduced) == 2:  # Keras serialises its layers by its own functions
            return _read_again, (original_class(type(self)), reduced[0].__name__, *reduced[1])
        state = {k: v for k, v in reduced[2].items() if k != "_last_graph" and not k.startswith("_traced_")}
        if self._repeated is not None:
            state["_repeated"] = Repeated()
        return (_blank, (original_class(type(self)),), state, *reduced[3:])


NAMES = ("spec", "at", "plan", "peer")  # attributes of converted layers; one that has its own is not converted


def undo(layer: Any) -> None:
    """Give a converted layer its original class again."""
    cls = type(layer)
    if parametrize.is_parametrized(layer):
        body = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        layer.__class__ = type(cls.__name__, (base_class(layer),), body)
    else:
        layer.__class__ = base_class(layer)
    for name in ("gconv", "_repeated", "_cached_graph", "_changed"):
        vars(layer).pop(name, None)


def may_change_spec(name: str) -> bool:
    """Whether the operator of a layer may depend on an attribute."""
    return name in METHODS or (name[0] != "_" and name not in ("training", "gconv", "report", "built"))


def same_shape(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are initialised and have the same shape."""
    return not is_lazy(a) and not is_lazy(b) and a.shape == b.shape


def _read_again(cls: type, read: str, *written: Any) -> Any:
    """A converted layer from its library's serialisation."""
    layer = getattr(cls, read)(*written)
    layer.__class__ = convertible(cls)
    layer.gconv = Unweighted(describe(layer)[1]).train(layer.training)
    return layer


def _blank(cls: type) -> Any:
    """An empty converted layer, into which a pickle is loaded."""
    made: Any = convertible(cls)
    return made.__new__(made)


_peer._blank = _blank  # type: ignore[attr-defined]  # for pickles of earlier versions, which refer to it there


@function("classes of converted layers", stays=True)
def convertible(cls: type) -> type:
    """The class of converted layers that derives from a peer's class."""
    peer = find(cls)
    original = getattr(cls, peer.method)
    on_graphs = any(map(is_pyg, cls.__mro__))
    most, names = arguments(original)

    @wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) > most or (kwargs and names is not None and any([name not in names for name in kwargs])):
            return original(self, *args, **kwargs)  # it raises: a peer's call may have more arguments than the layer
        if on_graphs and torch.compiler.is_dynamo_compiling():
            if may_interrupt():  # S is then cached for each edge_index, as in eager calls
                return eagerly(forward, self, *args, **kwargs)
            if self._changed:
                _renewed(self)
            y = peer.call(self, *args, **kwargs) if _ready(self) else None
            return original(self, *args, **kwargs) if y is None else y
        if self._changed:
            _renewed(self)
        y = failed = None
        traced = is_jit_tracing()
        # a trace of gconv would hold for grids of the size of its example only
        if self.gconv is not None and (on_graphs or not traced) and obstacle(self, peer.inner) is None:
            try:
                if traced:
                    with tracing():
                        y = peer.call(self, *args, **kwargs)
                else:
                    y = peer.call(self, *args, **kwargs)
            except LeftAlone:  # a submodule was replaced
                y = None
            except (ValueError, TypeError) as error:
                if on_graphs:
                    raise refusal(self, original, args, kwargs, error) from None
                y = None  # torch's own forward runs, or raises its usual error
            except BARE as error:  # usually an argument is no tensor, and the original raises its own error
                failed = f"{type(error).__name__}: {error}"
        if y is not None:
            if self._cached_graph is not None:
                _fill_cache(self, original, args, kwargs)
            return y
        try:
            y = original(self, *args, **kwargs)
        except (*BARE, RuntimeError) as error:
            found = explained(self, original, args, kwargs, error) if on_graphs else error
            if found is error:
                raise
            raise found from error
        if failed is not None:
            warnings.warn(FAILED.format(cls.__name__, failed), RuntimeWarning, stacklevel=2)
        return y

    forward.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]

    def reset_parameters(self: Any) -> None:
        self._cached_graph = None
        for name in CACHES:  # attributes of some PyG classes
            if hasattr(self, name):
                setattr(self, name, None)
        cls.reset_parameters(self)  # type: ignore[attr-defined]

    body = {peer.method: forward, "peer": peer, "__module__": cls.__module__, "__doc__": cls.__doc__}
    if hasattr(cls, "reset_parameters"):
        body["reset_parameters"] = reset_parameters
    if hasattr(cls, "_check_quantize_args"):
        body["_check_quantize_args"] = before_quantization
    kind = LikeItsOriginal if type(cls) is type else type("LikeItsOriginal", (LikeItsOriginal, type(cls)), {})
    return kind(cls.__name__, (Converted, cls), body)


def before_quantization(self: Any, *args: Any, **kwargs: Any) -> None:
    """Keras quantises layers of exactly its own classes; a layer that passes its checks becomes one again."""
    original_class(type(self))._check_quantize_args(self, *args, **kwargs)  # type: ignore[attr-defined]
    undo(self)


def arguments(forward: Callable[..., Any]) -> tuple[float, frozenset[str] | None]:
    """The number of arguments after self that a forward takes by position, and the names of all; None for any names.

    >>> arguments(nn.Linear.forward)
    (1, frozenset({'input'}))
    """
    given = list(inspect.signature(forward).parameters.values())[1:]
    kinds = [p.kind for p in given]
    most = math.inf if inspect.Parameter.VAR_POSITIONAL in kinds else len(given)
    return most, None if inspect.Parameter.VAR_KEYWORD in kinds else frozenset(p.name for p in given)


CACHES = ("_cached_edge_index", "_cached_adj_t")
FAILED = (
    "gconv failed to compute this call of a converted {} ({}), so the original layer computed it. "
    "The result is correct, but this is a bug in gconv: please report it."
)


def _fill_cache(layer: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Fill the cache attributes of a PyG layer, once, by running its original forward up to the propagation."""
    if any(getattr(layer, name, None) is not None for name in CACHES):
        return
    twin = shallow(layer)
    twin.__dict__["propagate"] = _stop
    with torch.no_grad(), torch.random.fork_rng(devices=[]), suppress(_Filled):
        original(twin, *args, **kwargs)
    for name in CACHES:
        if hasattr(twin, name):
            setattr(layer, name, getattr(twin, name))


def shallow(layer: Any) -> Any:
    """A copy with the same attributes; copy.copy refuses layers with parametrizations."""
    twin = object.__new__(type(layer))
    twin.__dict__.update(vars(layer))
    return twin


class _Filled(Exception):
    """Raised in place of the propagation."""


def _stop(*args: Any, **kwargs: Any) -> None:
    raise _Filled


BARE = (AssertionError, AttributeError, IndexError, KeyError, NotImplementedError)


def said(error: Exception) -> str:
    """The first line of a peer's error message, as the end of a sentence."""
    lines = str(error).strip().splitlines()
    return f": {lines[0].rstrip('.')}" if lines else "; a required argument is missing or of the wrong type"


def explained(layer: Any, original: Callable[..., Any], args: Any, kwargs: Any, error: Exception) -> Exception:
    """An error of PyG with a sentence about the argument that is wrong; the error itself if none is found."""
    why = wrong_argument(layer, original, args, kwargs)
    if not why and not isinstance(error, BARE):
        return error
    why = why or f"{base_class(layer).__name__} does not accept this call{said(error)}."
    return _noted(both(InputError, error, why), error)


def _noted(found: Exception, theirs: Exception) -> Exception:
    """gconv's error with the message of PyG's as a note, so that it can be searched for, too."""
    if str(theirs):
        found.add_note(f"PyG's own message: {theirs}")
    return found


def _tensor(value: Any) -> Tensor | None:
    return value if isinstance(value, Tensor) else None


def wrong_argument(layer: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> str:
    """What is wrong with the arguments of a call that PyG refused, in a sentence; nothing if it is none of these."""
    name, signature = base_class(layer).__name__, inspect.signature(original)
    try:
        given = signature.bind(layer, *args, **kwargs).arguments
    except TypeError:
        return ""
    x, edges = given.get("x"), given.get("edge_index")
    if not (x is None or isinstance(x, Tensor | tuple) or type(x).__name__ == "SparseTensor"):
        return f"{name}: x must be a torch tensor, but it is {shown(x)}."
    if not isinstance(edges, Tensor) or edges.layout != torch.strided:
        return ""
    weight, types = given.get("edge_weight"), given.get("edge_type")
    try:
        Graph(edges, edge_weight=_tensor(weight), edge_type=_tensor(types))
    except (TypeError, ValueError) as error:
        return str(error)
    relations = getattr(layer, "num_relations", None)
    if relations is not None and "edge_type" in signature.parameters:
        if types is None:
            return f"{name} needs edge_type, the relation of each edge."
        if isinstance(types, Tensor) and types.numel() and int(types.max()) >= relations:
            have = plural(relations, "relation")
            return f"edge_type contains {int(types.max())}, but {name} has {have}, numbered from 0."
    if x is None and "x" in signature.parameters:
        return f"{name}: x must be a torch tensor, but it is None."
    return ""


def refusal(layer: Any, original: Callable[..., Any], args: Any, kwargs: Any, error: Exception) -> Exception:
    """gconv's error for a call; if the peer raises an error as well, it is also an instance of that error's class."""
    twin = shallow(layer)
    twin.__dict__.update(_parameters=dict(layer._parameters), _buffers=dict(layer._buffers))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            original(twin, *args, **kwargs)
    except Exception as theirs:
        if type(theirs) is TypeError and type(error) is TypeError and "argument" in str(theirs):
            return theirs  # a missing or unknown argument
        return _noted(both(type(error), theirs, str(error)), theirs)
    return error


@at_trace_time
def _renewed(layer: Any) -> None:
    """`renew` during tracing by a compiler."""
    renew(layer)


@at_trace_time
def _ready(layer: Any) -> str | None:
    """Whether a layer runs in gconv, evaluated once during tracing by a compiler."""
    return "yes" if layer.gconv is not None and obstacle(layer, layer.peer.inner) is None else None


def renew(layer: Any) -> None:
    """Recompute the spec after a change; if it is not supported, the original forward runs from now on."""
    layer._changed = False
    try:
        spec = describe(layer)[1]
    except (LeftAlone, AttributeError):  # AttributeError: an attribute was deleted
        layer.gconv = None
        return
    if layer.gconv is None or spec != layer.gconv.spec:
        layer.gconv = Unweighted(spec).train(layer.training)
