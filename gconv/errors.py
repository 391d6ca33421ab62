"""Errors about the input of a call. They also derive from the class that torch's layers raise for the same mistake."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gconv.batched_gradients import is_batched, one_by_one
from gconv.caches import function


class InputError(ValueError, RuntimeError):
    """The shape, the number of channels or the device of an input does not fit the layer.

    torch's layers raise a RuntimeError here, so code that catches either class works with both.

    >>> issubclass(InputError, ValueError) and issubclass(InputError, RuntimeError)
    True
    """


class InputTypeError(TypeError, RuntimeError):
    """The dtype of an input does not fit the layer. torch's layers raise a RuntimeError here."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate an array, on the CPU or another device."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a full stop; the class of the error if it has no message.

    >>> first_line(ValueError("Too small.\\nMore.")), first_line(KeyError())
    ('Too small', 'KeyError')
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".")


class Differentiable(torch.autograd.Function):
    """An autograd function that names the arrays of its backward pass if memory runs out there.

    Its backward pass also takes batches of gradients (`is_grads_batched=True`, `jacobian(vectorize=True)`), one by one.

    A subclass has `what`, the name of the operation, or a static method that returns it for the context.

    >>> class Double(Differentiable):
    ...     what = "2 x"
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         return 2 * x
    ...     @staticmethod
    ...     def backward(ctx, g):
    ...         return 2 * g
    >>> type(Double.apply(torch.ones(1).requires_grad_()).grad_fn).__name__
    'DoubleBackward'
    """

    what: str | Callable[[Any], str]

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        cls.backward = staticmethod(explained(cls.backward, cls.what))  # type: ignore[method-assign]


def explained(backward: Callable[..., Any], what: str | Callable[[Any], str]) -> Callable[..., Any]:
    """A backward pass (ctx, *gradients) that takes batches and whose allocator errors name its arrays."""

    @functools.wraps(backward)
    def run(ctx: Any, *gradients: Any) -> Any:
        if not torch.compiler.is_dynamo_compiling():
            for gradient in gradients:
                if isinstance(gradient, Tensor) and is_batched(gradient):
                    return one_by_one(backward, ctx, gradients)
        try:
            return backward(ctx, *gradients)
        except RuntimeError as error:
            if not ran_out_of_memory(error) or error.__cause__ is not None:  # that one has been explained already
                raise
            raise _without_memory(error, what if isinstance(what, str) else what(ctx), ctx, gradients) from error

    return run


def _without_memory(error: RuntimeError, what: str, ctx: Any, gradients: tuple[Any, ...]) -> RuntimeError:
    given, kept = [t for t in gradients if isinstance(t, Tensor)], []
    with contextlib.suppress(RuntimeError):  # arrays that hooks would have to allocate again
        kept = sorted((t for t in ctx.saved_tensors if t is not None), key=lambda t: -t.nbytes)[:1]
    where = f" on {given[0].device}" if given else ""
    return type(error)(
        f"The backward pass of {what} ran out of memory{where}: {_sizes('the gradient of the result', given)}"
        f"{_sizes(', and the largest array saved for it', kept)}. "
        f"{first_line(error)}. To use less memory: pass fewer signals or smaller images at a time, or a part of "
        "the graph (graph.sample, gconv.parallel); save fewer arrays with torch.utils.checkpoint; choose a lowering "
        "with a smaller peak, as listed by print(layer.plan(...))."
    )


def _sizes(name: str, tensors: list[Tensor]) -> str:
    return f"{name} {', '.join(f'{tuple(t.shape)} has {t.nbytes / 1e6:.4g} MB' for t in tensors)}" if tensors else ""


def both(ours: type[Exception], theirs: Exception, message: str) -> Exception:
    """An error with this message that is an instance of our class and, if the two can be combined, of that of `theirs`.

    >>> error = both(ValueError, AssertionError(), "too small")
    >>> isinstance(error, ValueError) and isinstance(error, AssertionError)
    True
    >>> error = both(ValueError, UnicodeDecodeError("utf-8", b"", 0, 1, ""), "not text")  # takes five arguments
    >>> type(error), str(error)
    (<class 'ValueError'>, 'not text')
    """
    pair: Any = ours, type(theirs)
    if issubclass(ours, pair[1]):
        return ours(message)
    try:
        made: Exception = (pair[1] if issubclass(pair[1], ours) else _combined(*pair))(message)
    except TypeError:  # the classes have incompatible layouts, or theirs takes other arguments
        return ours(message)
    return made


@function("classes of errors", stays=True)
def _combined(ours: Any, theirs: Any) -> type[Exception]:
    return type(ours.__name__, (ours, theirs), {"__module__": __name__})
