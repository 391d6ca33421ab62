"""Argument checks: conversion of numbers of numpy and torch to Python's, and errors that name function and argument."""

from __future__ import annotations

import difflib
import inspect
import math
import operator
import os
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import wraps
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np
import torch
from torch import SymInt, Tensor, nn

from gconv.errors import first_line

MAX_DEPTH = 16  # of tuples in tuples
MAX_LENGTH, MAX_CHARACTERS = 4096, 100  # of a tuple, of a string
MAX_INTEGER = 2**63 - 1


def integer(value: Any, name: str, least: int | None = None) -> int:
    """`value` as an int: accepts integers of Python, numpy and torch, but no float, bool or string.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is less than `least` or does not fit in 64 bits.

    >>> integer(3, "size")
    3
    >>> integer(2.7, "size")
    Traceback (most recent call last):
        ...
    TypeError: size must be an integer, but it is 2.7.
    """
    if type(value) is SymInt:  # operator.index would specialise a dynamic size
        return value  # type: ignore[return-value]
    try:
        if isinstance(value, bool):
            raise TypeError
        number = value if type(value) is int else operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor with several entries raises any of these
        raise TypeError(f"{name} must be an integer, but it is {shown(value)}.") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, but it is {shown(number)}.")
    if abs(number) > MAX_INTEGER:
        raise ValueError(f"{name} must fit into 64 bits, but it has {number.bit_length()}.")
    return number


def shown(value: Any) -> str:
    """A short repr of any value, for error messages."""
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        text = repr(value if not isinstance(value, str | bytes) else value[:40])
        return text if len(text) < 60 else text[:56] + "..."
    if isinstance(value, tuple | list) and len(value) < 9 and all(isinstance(v, int | float | str) for v in value):
        start, end = "()" if isinstance(value, tuple) else "[]"
        return start + ", ".join(shown(v) for v in value) + ("," if start == "(" and len(value) == 1 else "") + end
    return kind_of(value)


def kind_of(value: Any) -> str:
    """A description of a value by its type, for error messages.

    >>> kind_of(None), kind_of(nn.Linear), kind_of("x"), kind_of(2)
    ('None', 'the class Linear', 'a str', 'an int')
    """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


def plural(n: int, one: str, many: str = "") -> str:
    """A number and its noun.

    >>> plural(1, "node"), plural(3, "node"), plural(0, "axis", "axes")
    ('1 node', '3 nodes', '0 axes')
    """
    return f"{n} {one if type(n) is int and n == 1 else many or f'{one}s'}"


def absence(device: Any) -> str:
    """Why no tensor can be made on a device, in a sentence; nothing where one can.

    >>> absence("cpu"), absence("cuda:4096")[:29]
    ('', "The device 'cuda:4096' cannot")
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        return f"The device {str(device)!r} cannot be used by torch {torch.__version__} here: {first_line(error)}."
    return ""


def near(word: str, known: Sequence[str], meanings: Mapping[str, str] | None = None) -> str:
    """A question that suggests the closest of the known words, or an empty string.

    >>> near("K", ["in_channels", "k"])
    "; did you mean 'k'?"
    """
    if meanings and word in meanings:
        return f"; did you mean {meanings[word]!r}?"
    lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(str(word).lower()[:60], list(lower), 1)
    return f"; did you mean {lower[found[0]]!r}?" if found else ""


def _listed(known: Sequence[str]) -> str:
    return f"its arguments are {', '.join(known)}" if known else "it takes no arguments"


def unknown_argument(
    name: str, word: str, known: Sequence[str], meanings: Mapping[str, str] | None = None
) -> TypeError:
    """The error for an argument that a function does not have; it suggests the closest one that it has.

    >>> unknown_argument("gcn", "graph", ["x", "domain"], {"graph": "domain"})
    TypeError("gcn: unknown 'graph'; did you mean 'domain'? Its arguments are x, domain.")
    """
    guess, listed = near(word, known, meanings), _listed(known)
    return TypeError(f"{name}: unknown {word!r}{guess or ';'} {listed[0].upper() if guess else listed[0]}{listed[1:]}.")


def bind(
    signature: inspect.Signature,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    meanings: Mapping[str, str] | None = None,
) -> inspect.BoundArguments:
    """`signature.bind`, with errors that name the function and the argument and suggest the closest known one.

    Args:
        signature: of the function.
        name: of the function.
        args, kwargs: the arguments of the call.
        meanings: names that other libraries use -> the function's own.

    Raises:
        TypeError: if an argument is unknown, missing or given twice, or there are too many.
    """
    try:
        return signature.bind(*args, **kwargs)
    except TypeError:
        pass
    kinds = {word: p.kind for word, p in signature.parameters.items()}
    open_ended = [kind for kind in kinds.values() if kind in (_Kind.VAR_POSITIONAL, _Kind.VAR_KEYWORD)]
    known = [word for word, kind in kinds.items() if kind not in open_ended]
    ordered = [word for word in known if kinds[word] is not _Kind.KEYWORD_ONLY]
    listed = _listed(known)
    for word in kwargs:
        if word not in known and _Kind.VAR_KEYWORD not in open_ended:
            raise unknown_argument(name, word, known, meanings)
    if len(args) > len(ordered) and _Kind.VAR_POSITIONAL not in open_ended:
        by_name = f"; {', '.join(known[len(ordered) :])} by name only" if ordered != known else ""
        raise TypeError(f"{name}: {len(args)} arguments were given by position, but {listed}{by_name}.")
    twice = [word for word in ordered[: len(args)] if word in kwargs]
    if twice:
        raise TypeError(f"{name}: {twice[0]!r} is given twice, by position and by name.")
    given = {*ordered[: len(args)], *kwargs}
    missing = [word for word in known if signature.parameters[word].default is _Kind.empty and word not in given]
    raise TypeError(
        f"{name}: {' and '.join(map(repr, missing))} {'is' if len(missing) == 1 else 'are'} missing; {listed}."
    )


_Kind = inspect.Parameter  # of an argument: by position, by name, or open-ended
C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F) -> F:
    """Decorates a public function: checks arguments against their annotations, with a one-sentence error.

    Flags, numbers, strings, paths, devices and dtypes are checked before the call. Tensors, modules and sequences are
    checked only if the call fails with an error that names neither the function nor the argument, so that the
    function's own, more specific messages come first. For an unknown keyword the closest argument is suggested.

    Raises:
        TypeError: if an argument has the wrong type, is unknown or is missing.
        ValueError: if a string is not one of those that the annotation lists.

    >>> @checked
    ... def scale(x: Tensor, by: float = 1.0, inplace: bool = False) -> Tensor:
    ...     return x.mul_(by) if inplace else x * by
    >>> scale(torch.ones(2), inplace="no")
    Traceback (most recent call last):
        ...
    TypeError: scale: inplace must be True or False, but it is 'no'.
    >>> scale("x", 2.5)
    Traceback (most recent call last):
        ...
    TypeError: scale: x must be a torch tensor, but it is 'x'.
    """
    signature = inspect.signature(function)
    name = function.__qualname__.removesuffix(".__init__")
    short = name.rsplit(".", 1)[-1]
    hints: dict[str, Any] = {}
    open_ended = [p.name for p in signature.parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not hints:  # lazily: at import time the names in annotations may not be defined yet
            hints.update(_evaluated(function))
        try:
            bound = signature.bind(*args, **kwargs).arguments
        except TypeError:
            visible = signature.replace(
                parameters=[p for p in signature.parameters.values() if p.name not in ("self", "cls")]
            )
            bind(visible, name, args[len(signature.parameters) - len(visible.parameters) :], kwargs)
            raise
        for key, value in bound.items():
            hint = hints.get(key, Any)
            if _is_plain(hint) and not accepts(value, hint):
                raise _refusal(name, key, value, hint)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            for key, value in bound.items():
                if torch.device in _parts(hints.get(key)) and value is not None and (reason := absence(value)):
                    raise ValueError(f"{name}: {key}: {reason}") from error
            if type(error) not in RAW_ERRORS:
                raise
            for key, value in bound.items():
                said = any(re.search(rf"\b{word}\b", str(error)) for word in (key, short))  # 'y' is not in 'ndarray'
                if key not in open_ended and not said and not accepts(value, hints.get(key, Any)):
                    raise _refusal(name, key, value, hints[key]) from error
            raise

    return call  # type: ignore[return-value]


RAW_ERRORS = (TypeError, ValueError, AttributeError, KeyError, IndexError, AssertionError, RuntimeError, OverflowError,
              NotImplementedError, RecursionError, ZeroDivisionError)  # fmt: skip
NUMBERS = (bool, int, float, str, None, NoneType)


def _evaluated(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's arguments, without those that cannot be evaluated."""
    known = {}
    for key, hint in function.__annotations__.items():
        try:
            known[key] = eval(hint, function.__globals__) if isinstance(hint, str) else hint
        except Exception:
            continue
    return known


def _parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_plain(hint: Any) -> bool:
    """Whether an annotation consists of flags, numbers, strings, paths, devices and dtypes."""
    return all(
        part in NUMBERS
        or part in (torch.device, torch.dtype)
        or get_origin(part) is Literal
        or (get_origin(part) or part) is os.PathLike
        for part in _parts(hint)
    )


def accepts(value: Any, hint: Any) -> bool:
    """Whether a value has the annotated type; numbers of numpy and torch count as numbers."""
    parts = _parts(hint)
    if torch.device in parts and isinstance(value, str):
        try:
            return bool(torch.device(value))
        except RuntimeError:
            return False
    if isinstance(value, str) and not value and any((get_origin(part) or part) is os.PathLike for part in parts):
        return False
    return any(_accepts_one(value, part) for part in parts)


def _accepts_one(value: Any, hint: Any) -> bool:
    origin = get_origin(hint) or hint
    if origin is Literal or hint is None or hint is NoneType:
        return fits(value, hint)
    if hint is bool:
        return isinstance(value, bool | np.bool_) or (type(value) is int and value in (0, 1))
    if hint in (int, float) and not isinstance(value, bool | np.bool_):
        if type(value) is SymInt or (hint is float and isinstance(value, float | np.floating)):
            return True
        if hint is float and isinstance(value, Tensor | np.ndarray):
            return value.ndim == 0
        try:
            return abs(integer(value, "")) <= MAX_INTEGER
        except (TypeError, ValueError):
            return False
    if hint in (int, float):
        return False
    if origin in (Sequence, Iterable, list, tuple) and isinstance(value, Tensor | np.ndarray):
        return all(part in (bool, int, float, Any, Ellipsis) for part in get_args(hint))
    if origin in (Sequence, Iterable, list, tuple):
        return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    if isinstance(origin, type) and origin is not Any:
        try:
            return isinstance(value, origin) and not (origin is Hashable and isinstance(value, Tensor | np.ndarray))
        except TypeError:  # a protocol
            return True
    if isinstance(hint, TypeVar):
        return hint.__bound__ is None or accepts(value, hint.__bound__)
    return True  # Any, callables: checked by the function itself


def _refusal(name: str, key: str, value: Any, hint: Any) -> Exception:
    listed = {type(word) for part in _parts(hint) if get_origin(part) is Literal for word in get_args(part)}
    words = type(value) in listed
    if torch.device in _parts(hint):
        what = "a device such as 'cpu' or 'cuda:0'"
        words = isinstance(value, str)
    else:
        what = described(hint)
    return (ValueError if words else TypeError)(f"{name}: {key} must be {what}, but it is {shown(value)}.")


def explain_keywords(**meanings: str) -> Callable[[type[C]], type[C]]:
    """Decorates a class: for an unknown keyword of the constructor, the error suggests the right one.

    Args:
        meanings: names that other libraries use -> the argument's name.
    """

    def decorate(cls: type[C]) -> type[C]:
        init = cls.__init__
        known = tuple(inspect.signature(init).parameters)[1:]

        @wraps(init)
        def explained(self: C, *args: Any, **kwargs: Any) -> None:
            try:
                init(self, *args, **kwargs)
            except Exception as error:
                if type(error) not in RAW_ERRORS:
                    raise
                signature = inspect.signature(init)  # not in the closure, where torch.compile does not support one
                visible = signature.replace(parameters=list(signature.parameters.values())[1:])
                bind(visible, cls.__name__, args, kwargs, meanings)
                hints = _evaluated(init)
                for key, value in {**dict(zip(known, args, strict=False)), **kwargs}.items():
                    if key not in str(error) and not accepts(value, hints.get(key, Any)):
                        raise _refusal(cls.__name__, key, value, hints[key]) from error
                raise

        cls.__init__ = explained  # type: ignore[assignment]
        return cls

    return decorate


def plain(value: Any, name: str, depth: int = 0) -> Any:
    """Converts numbers and sequences of numpy and torch to Python's numbers and tuples; other values are unchanged.

    Raises:
        ValueError: if a number is not finite, an integer does not fit in 64 bits, or a sequence is too long or nested
            too deeply.
        TypeError: if a value cannot be part of a spec, because it is not hashable.
    """
    if value is None or isinstance(value, bool):
        return value
    if hasattr(value, "tolist") and hasattr(value, "ndim"):  # arrays and scalars of numpy, tensors of torch
        try:
            value = value.tolist()
        except (RuntimeError, NotImplementedError):  # a tensor without data: meta, fake
            raise TypeError(f"{name} must be a number, but it is {shown(value)} without values.") from None
        if value is None or isinstance(value, bool):
            return value
    if isinstance(value, list | tuple | range):
        if depth >= MAX_DEPTH:
            raise ValueError(f"{name} is nested more than {MAX_DEPTH} levels deep.")
        _check_length(value, name)
        return tuple(plain(part, name, depth + 1) for part in value)
    if isinstance(value, str):
        _check_length(value, name)
        return str.__str__(value)
    if hasattr(value, "__index__"):
        return integer(value, name)
    if hasattr(value, "__float__"):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ValueError(f"{name} must be finite, but it is {number}.")
        return number
    try:
        hash(value)
    except TypeError:
        raise TypeError(f"{name} must be a number, a string or a tuple of them, but it is {shown(value)}.") from None
    return value


def _check_length(value: Sequence[Any], name: str) -> None:
    longest = MAX_CHARACTERS if isinstance(value, str) else MAX_LENGTH
    if len(value) > longest:
        unit = "characters" if isinstance(value, str) else "entries"
        raise ValueError(f"{name} must have at most {longest} {unit}, but it has {len(value)}.")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the annotated type: int, float, bool, str, None, Literal, tuples and unions of them.

    Other annotations accept any value.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in args)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        parts = args[:1] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        return len(parts) == len(value) and all(fits(v, part) for v, part in zip(value, parts, strict=True))
    if hint in (None, NoneType):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str) else True


def described(hint: Any) -> str:
    """A description of an annotated type, for error messages.

    >>> described(int | None), described(Literal["sym", "rw"] | None)
    ('an integer or None', "'sym', 'rw' or None")
    """
    words = _words(hint)
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _words(hint: Any) -> list[str]:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return [word for part in args for word in _words(part)]
    if origin is Literal:
        return [repr(word) for word in args]
    if origin is tuple:
        return [f"a tuple of {_words(args[0])[0].removeprefix('an ').removeprefix('a ')}s"]
    if origin in (Sequence, Iterable, list):
        inner = _words(args[0])[0] if args else "values"
        return [f"a sequence of {inner.removeprefix('an ').removeprefix('a ')}{'' if inner == 'Any' else 's'}"]
    names: dict[Any, str] = {
        int: "an integer",
        float: "a number",
        bool: "True or False",
        str: "a string",
        NoneType: "None",
        None: "None",
        Any: "value",
        Tensor: "a torch tensor",
        nn.Module: "a torch module",
        torch.dtype: "a torch.dtype",
        os.PathLike: "a path",
    }
    if isinstance(hint, TypeVar):
        return _words(hint.__bound__)
    hint = origin or hint
    if hint in names:
        return [names[hint]]
    article = "an" if isinstance(hint, type) and hint.__name__[0] in "AEIOU" else "a"
    return [f"{article} {hint.__name__}" if isinstance(hint, type) else str(hint).removeprefix("typing.")]
