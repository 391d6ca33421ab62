"""The kind of the current call: plain eager, or under a transform, a compiler, an exporter or a tracer.

Three predicates determine what a call may do:

    is_plain_eager()   no transform, mode or tracer is active: kernels are called directly, and results may be cached
    composes()         kernels must be composed of torch operators: under transforms of torch.func, forward-mode
                       differentiation, torch.jit.trace, torch.export, the ONNX exporters, and `portable`
    readable(t)        the values of t may be read: not for fake, meta, traced or batched tensors

Results that are cached are computed outside of transforms, traces and modes, from plain tensors (`lasting`). Results
computed within a trace are never cached. Private names of torch are looked up here, with fallbacks; those for batches
of gradients in `gconv.batched_gradients`.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from itertools import accumulate
from types import FunctionType, SimpleNamespace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch

PLAIN = (Tensor, Parameter)
_without_modes = getattr(_python_dispatch, "_disable_current_modes", nullcontext)
_tracing_state = getattr(torch._C, "_get_tracing_state", lambda: None)
_set_tracing_state: Any = getattr(torch._C, "_set_tracing_state", lambda state: None)
_value_trace: Any = getattr(torch._C, "_get_value_trace", None)
_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_FLAGS: Any = (
    torch.compiler if hasattr(torch.compiler, "_is_compiling_flag") else SimpleNamespace(_is_compiling_flag=False)
)
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_portable_calls = 0  # number of active `portable` blocks in all threads; compiled functions guard on it


class _Local(threading.local):
    portable = 0  # number of active blocks in this thread


_LOCAL = _Local()


@contextmanager
def portable() -> Iterator[None]:
    """Within this block, layers use torch operators only: no compiled kernels and no custom operators.

    A graph that is traced or exported then contains aten operators only, and can run without gconv. Under
    torch.jit.trace, torch.export and both ONNX exporters, and on devices other than CPU and CUDA, this is the default.
    Results are equal up to rounding, but more memory is used: a row of x is stored for each edge.

    >>> from gconv import GConv, Graph
    >>> from gconv.operators import gcn
    >>> layer, path, x = GConv(gcn(2, 3)), Graph(torch.tensor([[0, 1], [1, 0]])), torch.ones(2, 2)
    >>> with portable():
    ...     y = layer(x, path)
    >>> torch.allclose(y, layer(x, path))
    True
    """
    global _portable_calls
    entered = False  # an interrupt leaves the counts as they were
    try:
        with _COUNT:
            _portable_calls += 1
            _LOCAL.portable += 1
            entered = True
        yield
    finally:
        if entered:
            with _COUNT:
                _portable_calls -= 1
                _LOCAL.portable -= 1


_COUNT = threading.RLock()  # reentrant for signal handlers


def _after_fork() -> None:
    global _COUNT, _portable_calls
    _COUNT = threading.RLock()  # another thread may have held it
    _portable_calls = _LOCAL.portable  # the other threads are not in this process


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def is_plain_eager() -> bool:
    """Whether no compiler, exporter, tracer, transform, dispatch mode or `portable` block is active."""
    if torch.compiler.is_dynamo_compiling() or _FLAGS._is_compiling_flag:  # torch.compiler.is_compiling(), but faster
        return False
    if _dispatch_modes() > 0 or _tracing_state() is not None:
        return False
    if _portable_calls and _LOCAL.portable:
        return False
    return not (torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0)


CallKind = Literal["eager", "transformed", "composed", "compiled", "watched"]


def call_kind() -> CallKind:
    """The kind of the current call.

    "eager": plain eager. "transformed": within a transform of torch.func or forward-mode differentiation. "composed":
    traced, exported or `portable`, by torch operators only. "compiled": traced by torch.compile. "watched": under a
    dispatch mode, which intercepts every operator.
    """
    if is_plain_eager():
        return "eager"
    if transformed():
        return "transformed"
    if composes():
        return "composed"
    return "compiled" if torch.compiler.is_dynamo_compiling() else "watched"


def composes() -> bool:
    """Whether kernels must be composed of torch operators."""
    if torch.compiler.is_compiling():
        return _portable_calls > 0 or torch.compiler.is_exporting()
    return transformed() or _tracing_state() is not None or (_portable_calls > 0 and _LOCAL.portable > 0)


def transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_jit_tracing() -> bool:
    """Whether torch.jit.trace, or the ONNX exporter that is built on it, records this call."""
    return not torch.compiler.is_dynamo_compiling() and _tracing_state() is not None


def wrapped(*tensors: Tensor | None) -> bool:
    """Whether one of these is wrapped by a transform or has a tangent, so that results from it may not be cached."""
    if torch.compiler.is_compiling() or not transformed():
        return False
    given = [t for t in tensors if t is not None]
    if any(_functorch.is_functorch_wrapped_tensor(t) for t in given):
        return True
    return forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in given)


def varies(t: Tensor | None) -> bool:
    """Whether results from t may not be cached: it requires a gradient, is wrapped by a transform, or is traced."""
    if t is None:
        return False
    if t.requires_grad:
        return True
    if torch.compiler.is_dynamo_compiling() or is_plain_eager():
        return False
    return wrapped(t) or not readable(t)


def readable(t: Tensor) -> bool:
    """Whether the values of t may be read: not for fake, meta, traced or batched tensors, or in compiled functions."""
    if torch.compiler.is_dynamo_compiling():
        return False
    while _functorch.is_functorch_wrapped_tensor(t):
        if _functorch.is_batchedtensor(t):
            return False
        t = _functorch.get_unwrapped(t)
    if t.is_meta or (type(t) not in PLAIN and is_fake(t)):
        return False
    return _tracing_state() is None or not _is_traced(t)


def is_batched(t: Tensor) -> bool:
    """Whether vmap batches t, so that it stands for several tensors."""
    if torch.compiler.is_compiling():
        return False
    while _functorch.is_functorch_wrapped_tensor(t):
        if _functorch.is_batchedtensor(t):
            return True
        t = _functorch.get_unwrapped(t)
    return False


def shapes_only(t: Tensor) -> bool:
    """Whether t has a shape but no values: a meta tensor, or a fake tensor outside of compilers and exporters."""
    if torch.compiler.is_compiling():
        return False
    mode = getattr(t, "fake_mode", None)
    return t.is_meta or (mode is not None and getattr(mode, "shape_env", None) is None)


def is_fake(t: object) -> bool:
    """Whether t is a fake or functional tensor of torch's compilers and exporters."""
    return any(kind.__module__.startswith("torch._subclasses") for kind in type(t).__mro__)


def _is_traced(t: Tensor) -> bool:
    """Whether t depends on inputs or parameters of a torch.jit.trace; True if torch does not tell."""
    if t.requires_grad:
        return True
    try:
        return str(_value_trace(t).node().kind()) != "prim::Constant"
    except (TypeError, AttributeError, RuntimeError):
        return True


def concrete(of: object) -> bool:
    """Whether all tensors in an object (a tensor, or a container or dataclass of them) have readable values."""
    if torch.compiler.is_dynamo_compiling():
        return False
    if isinstance(of, Tensor):
        return readable(of)
    if isinstance(of, tuple | list):
        return all(concrete(part) for part in of)
    if isinstance(of, dict):
        return all(concrete(part) for part in of.values())
    if is_dataclass(of) and not isinstance(of, type):
        return all(concrete(of.__dict__.get(entry.name)) for entry in fields(of))
    return True


def derivatives(t: Tensor) -> int:
    """How many derivatives in t the active transforms may take; at least 2 if autograd tracks t, too."""
    count = 0
    while _functorch.is_functorch_wrapped_tensor(t):
        count += _functorch.is_gradtrackingtensor(t)
        t = _functorch.get_unwrapped(t)
    dual = forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None
    return count + dual + 2 * t.requires_grad


def at_trace_time(function: F) -> F:
    """Marks a function that torch.compile calls with real objects during tracing; its result is treated as a constant.

    The same as torch.compiler.assume_constant_result, without importing the compiler. Compiled functions guard on the
    arguments. Objects created within the trace have no attributes yet. The result must be a string or None: other
    results are stored as attributes by `leave` and read by getattr, so that the compiler knows their source.
    """
    if torch.__version__ < "2.12":  # compared as versions
        return _by_identity(function)
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def _by_identity(function: F) -> F:
    """`at_trace_time` for the compiler of torch 2.11, which passes only constants: objects are passed by their `id`."""
    constants = (int, str, tuple, type(None), torch.dtype, torch.device, FunctionType)

    def marked(objects: tuple[bool, ...], *given: Any) -> Any:
        # the compiler holds references to the arguments, so these are identities of living objects
        pairs = zip(given, objects, strict=True)
        return function(*(ctypes.cast(a, ctypes.py_object).value if o else a for a, o in pairs))

    marked._dynamo_marked_constant = True  # type: ignore[attr-defined]

    @functools.wraps(function)
    def call(*given: Any) -> Any:
        if not torch.compiler.is_dynamo_compiling():
            return function(*given)
        objects = tuple([not isinstance(a, constants) for a in given])
        return marked(objects, *[id(a) if o else a for a, o in zip(given, objects, strict=True)])

    return call  # type: ignore[return-value]


def leave(owner: object, name: str, value: object) -> str:
    """Stores a value as an attribute of `owner`; returns the name of the attribute."""
    owner.__dict__[f"_traced_{name}"] = value
    return f"_traced_{name}"


def is_static(sizes: Iterable[int]) -> bool:
    """Whether all sizes are plain integers, not symbols of a compiler or exporter."""
    if not torch.compiler.is_compiling():
        return all(type(size) is int for size in sizes)
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return all(has_static_value(size) for size in sizes)


@at_trace_time
def _whole_graph() -> str | None:
    current = getattr(getattr(getattr(torch, "_guards", None), "TracingContext", None), "try_get", lambda: None)
    context = current()
    shapes = getattr(getattr(context, "fake_mode", None), "shape_env", None)
    return "yes" if getattr(shapes, "allow_dynamic_output_shape_ops", True) else None


def may_interrupt() -> bool:
    """Whether the current call is compiled by torch.compile without fullgraph=True.

    The compiler then records no operation whose result has a size that depends on values, as S of an edge_index does.
    """
    return torch.compiler.is_dynamo_compiling() and _whole_graph() is None


_EAGER = SimpleNamespace()


@at_trace_time
def _eager_call() -> str:
    if not hasattr(_EAGER, "call"):
        _EAGER.call = torch.compiler.disable(lambda function, args, kwargs: function(*args, **kwargs))
    return "call"


def eagerly(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """A call in a compiled function that is not compiled, which interrupts the graph."""
    result: T = getattr(_EAGER, _eager_call())(function, args, kwargs)
    return result


def bare(t: Tensor) -> Tensor:
    """A tensor without the wrappers of differentiation transforms: one of integers, or that is used as a constant."""
    if torch.compiler.is_compiling():
        return t
    while _functorch.is_gradtrackingtensor(t):
        t = _functorch.get_unwrapped(t)
    return t


def outside_transforms(*sources: Tensor | None) -> AbstractContextManager[object]:
    """A context outside of all torch.func transforms, unless one of the sources is wrapped by them."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active() or wrapped(*sources):
        return nullcontext()
    return temporarily_clear_interpreter_stack()


def lasting(of: object = None) -> AbstractContextManager[object]:
    """A context for computing results that are cached: outside of transforms, traces and modes.

    Traces and modes stay active if the values of `of`, from which the result is computed, are not readable.
    """
    if torch.compiler.is_dynamo_compiling():
        return nullcontext()
    if is_plain_eager():
        return torch.inference_mode(False)
    stack = ExitStack()
    stack.enter_context(outside_transforms())
    if concrete(of):
        stack.enter_context(untraced())
    if not torch.compiler.is_compiling():
        stack.enter_context(torch.inference_mode(False))
    return stack


@contextmanager
def untraced() -> Iterator[None]:
    """A context outside of torch.jit.trace and all modes, such as fake tensor mode; for plain tensors only."""
    state = _tracing_state()
    with _without_modes(), torch._C.DisableTorchFunction():
        if state is not None:
            _set_tracing_state(None)
        try:
            yield
        finally:
            if state is not None:
                _set_tracing_state(state)


def as_fake(of: T, like: Tensor) -> T:
    """A structure or domain with its tensors converted to fake ones, if `like` is fake and its mode requires it."""
    mode = getattr(like, "fake_mode", None)
    if mode is None or getattr(mode, "allow_non_fake_inputs", False):
        return of
    found: T = _mapped(of, mode.from_tensor, {})
    return found


def _mapped(of: Any, convert: Callable[[Tensor], Tensor], done: dict[int, Any]) -> Any:
    """A copy of an object with its plain tensors converted, each of them once."""
    if id(of) in done:
        return done[id(of)]
    if type(of) in PLAIN:
        done[id(of)] = convert(of)
    elif type(of) in (tuple, list):
        done[id(of)] = type(of)(_mapped(part, convert, done) for part in of)
    elif type(of) is dict:
        done[id(of)] = {key: _mapped(part, convert, done) for key, part in of.items()}
    elif is_dataclass(of) and not isinstance(of, type):
        copy = done[id(of)] = object.__new__(type(of))
        copy.__dict__.update({name: _mapped(part, convert, done) for name, part in of.__dict__.items()})
    return done.get(id(of), of)


@contextmanager
def tracing() -> Iterator[None]:
    """A context for calls under torch.jit.trace: replaces operators that the TorchScript exporter cannot translate.

    It suppresses the tracer's warnings that sizes become constants, because a trace is valid for these sizes only.
    """
    with warnings.catch_warnings(), _Translated():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


class _Translated(TorchFunctionMode):
    """Replaces operators that the TorchScript ONNX exporter does not translate correctly by equivalent ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return REPLACED.get(func, func)(*args, **(kwargs or {}))


def index_add(y: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """y.index_add(dim, index, source) by scatter_add: the exporter keeps only the last of equal indices.

    >>> index_add(torch.zeros(2, 1), 0, torch.tensor([1, 1]), torch.ones(2, 1)).flatten()
    tensor([0., 2.])
    """
    axes = [1] * source.ndim
    axes[dim] = -1
    return y.scatter_add(dim, index.long().view(axes).expand_as(source), source)


def movedim(t: Tensor, source: int, destination: int) -> Tensor:
    """t.movedim(source, destination) as a permutation: the exporter translates negative axes wrongly.

    >>> movedim(torch.empty(2, 3, 4), -1, -3).shape
    torch.Size([4, 2, 3])
    """
    axes = list(range(t.ndim))
    axes.insert(destination % t.ndim, axes.pop(source % t.ndim))
    return t.permute(axes)


def argsort(t: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """torch.argsort; in an ONNX export by torch.sort without `stable`, whose translation is stable.

    >>> argsort(torch.tensor([2, 1, 2]), stable=True)
    tensor([1, 0, 2])
    """
    if torch.onnx.is_in_onnx_export():
        return t.sort(dim=dim, descending=descending)[1]
    return torch.argsort(t, dim=dim, descending=descending, stable=stable)


def stable_argsort(t: Tensor) -> Tensor:
    """The stable argsort of non-negative integers (n,).

    In exported programs by a sort of distinct numbers, because the newer ONNX exporter cannot translate a stable sort.

    >>> stable_argsort(torch.tensor([2, 1, 2]))
    tensor([1, 0, 2])
    """
    if torch.compiler.is_exporting():
        return torch.sort(t * t.shape[0] + torch.arange(t.shape[0], device=t.device))[1]
    return torch.argsort(t, stable=True)


def leaky_relu(t: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """F.leaky_relu by torch.where: TorchScript's derivative of leaky_relu rounds the slope to float32.

    >>> leaky_relu(torch.tensor([-1.0, 2.0]), 0.5)
    tensor([-0.5000,  2.0000])
    """
    return torch.where(t > 0, t, t * negative_slope)


def scatter_reduce(t: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, include_self: bool = True) -> Tensor:
    """t.scatter_reduce: the exporter's translation always includes t, and onnxruntime does not infer its shape.

    >>> scatter_reduce(torch.zeros(2), 0, torch.tensor([1, 1]), torch.tensor([-2.0, -1.0]), "amax", include_self=False)
    tensor([ 0., -1.])
    """
    if include_self or reduce not in ("amax", "amin"):
        return t.scatter_reduce(dim, index, src, reduce, include_self=include_self).reshape(t.shape)
    start = torch.full_like(t, -torch.inf if reduce == "amax" else torch.inf)
    reached = torch.zeros_like(t).scatter_add(dim, index, torch.ones_like(src)) > 0
    return torch.where(reached, start.scatter_reduce(dim, index, src, reduce).reshape(t.shape), t)


def cumprod(t: Tensor, dim: int) -> Tensor:
    """t.cumprod(dim) by single products.

    >>> cumprod(torch.tensor([2, 3, 4]), 0)
    tensor([ 2,  6, 24])
    """
    return torch.stack(list(accumulate(t.unbind(dim), torch.mul)), dim)


def _transposed(t: Tensor) -> Tensor:
    return t.transpose(-2, -1)


REPLACED: dict[Any, Callable[..., Tensor]] = {
    Tensor.mT.__get__: _transposed,  # type: ignore[attr-defined]
    Tensor.movedim: movedim,
    torch.movedim: movedim,
    Tensor.index_add: index_add,
    Tensor.scatter_reduce: scatter_reduce,
    Tensor.cumprod: cumprod,
    torch.argsort: argsort,
    Tensor.argsort: argsort,
    torch.nn.functional.leaky_relu: leaky_relu,
}


def no_subclass(a: Tensor, b: Tensor) -> bool:
    """Whether these are plain tensors, not of a subclass."""
    return type(a) in PLAIN and type(b) in PLAIN
