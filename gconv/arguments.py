"""Checks of what callers give: numbers of any library as Python's own, and errors that name function and argument."""

from __future__ import annotations

import difflib
import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from torch import SymInt

MAX_DEPTH = 16  # of tuples in tuples
MAX_LENGTH, MAX_WORD = 4096, 100  # of a tuple, of a word
MAX_INTEGER = 2**63 - 1


def integer(value: Any, name: str, least: int | None = None) -> int:
    """`value` as an int: Python's, numpy's and torch's integers, but no float, bool or text.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is less than `least` or does not fit into 64 bits.

    >>> integer(3, "size")
    3
    >>> integer(2.7, "size")
    Traceback (most recent call last):
        ...
    TypeError: size must be an integer, but it is 2.7.
    """
    if type(value) is SymInt:  # a size that an exporter keeps open is not fixed by a look at it
        return value  # type: ignore[return-value]
    try:
        if isinstance(value, bool):
            raise TypeError
        number = value if type(value) is int else operator.index(value)  # which would fix a compiler's
    except (TypeError, ValueError, RuntimeError):  # a tensor of several numbers raises any of them
        raise TypeError(f"{name} must be an integer, but it is {shown(value)}.") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, but it is {shown(number)}.")
    if abs(number) > MAX_INTEGER:
        raise ValueError(f"{name} must fit into 64 bits, but it has {number.bit_length()}.")
    return number


def shown(value: Any) -> str:
    """A short repr for a message, whatever the value."""
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        text = repr(value if not isinstance(value, str | bytes) else value[:40])
        return text if len(text) < 60 else text[:56] + "..."
    if isinstance(value, tuple | list) and len(value) < 9 and all(isinstance(v, int | float | str) for v in value):
        start, end = "()" if isinstance(value, tuple) else "[]"
        return start + ", ".join(shown(v) for v in value) + ("," if start == "(" and len(value) == 1 else "") + end
    return f"a {type(value).__name__}"


def near(word: str, known: Sequence[str], meanings: Mapping[str, str] | None = None) -> str:
    """A question that names the nearest of the known words, or nothing.

    >>> near("K", ["in_channels", "k"])
    "; did you mean 'k'?"
    """
    if meanings and word in meanings:
        return f"; did you mean {meanings[word]!r}?"
    lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(str(word).lower()[:60], list(lower), 1)
    return f"; did you mean {lower[found[0]]!r}?" if found else ""


def bind(
    signature: inspect.Signature,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    meanings: Mapping[str, str] | None = None,
) -> inspect.BoundArguments:
    """`signature.bind`, with an error that names the function, the word and the nearest one.

    Args:
        signature: of the function.
        name: of the function.
        args, kwargs: what it was called with.
        meanings: other libraries' words for its arguments.

    Raises:
        TypeError: if an argument is unknown, missing, given twice or one too many.
    """
    try:
        return signature.bind(*args, **kwargs)
    except TypeError:
        pass
    known = list(signature.parameters)
    listed = f"its arguments are {', '.join(known)}" if known else "it takes no arguments"
    for word in kwargs:
        if word not in known:
            guess = near(word, known, meanings)
            raise TypeError(
                f"{name}: unknown {word!r}{guess or ';'} {listed[0].upper() if guess else listed[0]}{listed[1:]}."
            )
    if len(args) > len(known):
        raise TypeError(f"{name}: {len(args)} arguments were given by position, but {listed}.")
    twice = [word for word in known[: len(args)] if word in kwargs]
    if twice:
        raise TypeError(f"{name}: {twice[0]!r} is given twice, by position and by name.")
    needed = [word for word, p in signature.parameters.items() if p.default is p.empty]
    missing = [word for word in needed[len(args) :] if word not in kwargs]
    raise TypeError(
        f"{name}: {' and '.join(map(repr, missing))} {'is' if len(missing) == 1 else 'are'} missing; {listed}."
    )


C = TypeVar("C")


def explain_keywords(**meanings: str) -> Callable[[type[C]], type[C]]:
    """Decorates a class: an unknown keyword is answered with the nearest one, or with the one that it means.

    Args:
        meanings: other libraries' words for the arguments.
    """

    def decorate(cls: type[C]) -> type[C]:
        init = cls.__init__
        known = tuple(inspect.signature(init).parameters)[1:]

        @wraps(init)
        def explained(self: C, *args: Any, **kwargs: Any) -> None:
            for word in kwargs:
                if word not in known:
                    guess = near(word, known, meanings) or ";"
                    raise TypeError(f"{cls.__name__}: unknown {word!r}{guess} Its arguments are {', '.join(known)}.")
            init(self, *args, **kwargs)

        cls.__init__ = explained  # type: ignore[assignment]
        return cls

    return decorate


def plain(value: Any, name: str, depth: int = 0) -> Any:
    """Numbers and sequences of any library as Python's own numbers and tuples; what is neither stays as it is.

    Raises:
        ValueError: if a number is not finite, an integer does not fit into 64 bits, or tuples are nested too deeply.
        TypeError: if a value cannot be part of a spec, because it has no hash.
    """
    if value is None or isinstance(value, bool):
        return value
    if hasattr(value, "tolist") and hasattr(value, "ndim"):  # arrays and scalars of numpy, tensors of torch
        try:
            value = value.tolist()
        except (RuntimeError, NotImplementedError):  # a tensor without numbers: meta, fake
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
        raise TypeError(f"{name} must be a number, a word or a tuple of them, but it is {shown(value)}.") from None
    return value


def _check_length(value: Sequence[Any], name: str) -> None:
    longest = MAX_WORD if isinstance(value, str) else MAX_LENGTH
    if len(value) > longest:
        kind, unit = ("word", "characters") if isinstance(value, str) else ("sequence", "entries")
        raise ValueError(f"{name} must not be a {kind} of more than {longest} {unit}, but it has {len(value)}.")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type: int, float, bool, str, None, Literal, tuples and unions of them.

    Annotations of other kinds fit everything.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in args)
    if origin is Literal:
        return any(type(value) is type(word) and value == word for word in args)
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
    """An annotated type in words.

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
    names = {int: "an integer", float: "a number", bool: "True or False", str: "a word", NoneType: "None", None: "None"}
    return [names[hint] if hint in names else str(hint)]
