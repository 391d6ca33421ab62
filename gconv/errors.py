"""Errors about the input of a call. They also derive from the class that torch's layers raise for the same mistake."""

from __future__ import annotations

from typing import Any

import torch

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


def both(ours: type[Exception], theirs: type[Exception]) -> type[Exception]:
    """An exception class derived from both; if one is a subclass of the other, that one.

    >>> error = both(ValueError, AssertionError)
    >>> issubclass(error, ValueError) and issubclass(error, AssertionError)
    True
    """
    if issubclass(ours, theirs):
        return ours
    if issubclass(theirs, ours):
        return theirs
    pair: Any = ours, theirs
    made: type[Exception] = _combined(*pair)
    return made


@function("classes of errors", stays=True)
def _combined(ours: Any, theirs: Any) -> type[Exception]:
    return type(ours.__name__, (ours, theirs), {"__module__": __name__})
