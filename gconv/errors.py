"""Errors about the input of a call, which are also of the class that torch's own layers raise for the same mistake."""

from __future__ import annotations


class InputError(ValueError, RuntimeError):
    """The shape, the number of channels or the device of an input does not fit the layer.

    torch's layers raise a RuntimeError here, so code that catches either class works with both.

    >>> issubclass(InputError, ValueError) and issubclass(InputError, RuntimeError)
    True
    """


class InputTypeError(TypeError, RuntimeError):
    """The dtype of an input does not fit the layer; torch raises a RuntimeError here, too."""
