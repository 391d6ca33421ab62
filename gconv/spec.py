"""OperatorSpec: a convolution as data, and the registry of all of them.

    Y = sum_k S_k X W_k + b

A spec is a structure (which site feeds which, through which tap), a mixing (what happens to the channels) and a flag
for the bias. It holds no weights and no domain.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from gconv.basis import Basis
from gconv.domains import Graph, Grid
from gconv.mixing import Mixing, Parametrised

Domain = Grid | Graph
POSITIONAL = ("in_channels", "out_channels", "channels", "kernel_size")  # printed without their names


class NotLinear(ValueError):
    """The operator has no matrix, adjoint or spectrum, because a tap reduces with max."""


class OutsideFamily(ValueError):
    """The convolution is not of the form sum_k S_k X W_k; the message says which assumption fails."""


class Inadmissible(ValueError):
    """The lowering that was asked for cannot run this structure; the message says why."""


@dataclass(frozen=True)
class Parameter:
    """A learned tensor of a structure: its shape and how it starts.

    "uniform" within a bound, or "constant": one number, or all of them in row-major order.
    """

    shape: tuple[int, ...]
    init: Literal["uniform", "constant"] = "uniform"
    value: float | tuple[float, ...] = 1.0

    def start(self, dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
        """A tensor to start from."""
        if isinstance(self.value, tuple):
            return torch.tensor(self.value, dtype=dtype, device=device).reshape(self.shape)
        empty = torch.empty(self.shape, dtype=dtype, device=device)
        return empty.uniform_(-self.value, self.value) if self.init == "uniform" else empty.fill_(self.value)


Theta = Mapping[str, Tensor]


class Structure(Protocol):
    """The site part of an operator: frozen, hashable, without numbers.

    `kind` says what S depends on: "fixed" the domain alone; "learned" also on parameters; "adaptive" on x as well.
    `dropout` is the share of S's values that training drops (0 for most).
    `nodes` is the size of the one graph that its parameters belong to (None for most: they fit any graph).
    """

    @property
    def taps(self) -> int: ...

    @property
    def domain(self) -> Literal["grid", "graph", "any"]: ...

    @property
    def kind(self) -> Literal["fixed", "learned", "adaptive"]: ...

    def parameters(self) -> dict[str, Parameter]:
        """What it learns, by name."""
        ...

    def basis(self, domain: Any, theta: Theta, x: Tensor) -> Basis:
        """S on a domain. theta holds the parameters and, under "weight", the mixing's weight; x is (*b, n, i)."""
        ...

    def target(self, domain: Any) -> Domain:
        """The domain of the output."""
        ...


@dataclass(frozen=True)
class OperatorSpec:
    """A convolution as data.

    Args:
        name: the factory that made it.
        arguments: what the factory was given; name and arguments are the whole identity of a spec.
        structure, mixing: the two parts.
        bias: whether one number a channel is added.
        init: how weights start: "fan_in" as torch's layers do, "glorot" (with zero bias) as the graph papers do.

    >>> from gconv.operators import cheb
    >>> cheb(16, 32, k=3)
    cheb(16, 32, k=3)
    >>> OperatorSpec.from_dict(cheb(16, 32, k=3).to_dict()) == cheb(16, 32, k=3)
    True
    """

    name: str
    arguments: tuple[tuple[str, Any], ...]
    structure: Structure = field(compare=False)
    mixing: Mixing | Parametrised = field(compare=False)
    bias: bool = False
    init: Literal["fan_in", "glorot"] = "fan_in"

    def __post_init__(self) -> None:
        if self.structure.taps != self.mixing.taps:
            raise ValueError(
                f"{self.name}: the structure has {self.structure.taps} taps, but the mixing has {self.mixing.taps}; "
                "they must be the same."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold."""
        return {"operator": self.name, **{key: _plain(value) for key, value in self.arguments}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OperatorSpec:
        """The spec that `to_dict` described.

        Raises:
            ValueError: if the operator is unknown.
        """
        rest = {key: _frozen(value) for key, value in data.items() if key != "operator"}
        return operator(data.get("operator", "")).factory(**rest)

    @classmethod
    def parse(cls, text: str) -> OperatorSpec:
        """The spec of a printed one, e.g. `"cheb(16, 32, k=3)"`; only literals are read, nothing is executed."""
        try:
            call = ast.parse(text, mode="eval").body
            assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
            positional = [ast.literal_eval(a) for a in call.args]
            named = {str(a.arg): ast.literal_eval(a.value) for a in call.keywords}
        except (SyntaxError, ValueError, AssertionError):
            raise ValueError(f"{text!r} is not a printed operator such as 'cheb(16, 32, k=3)'.") from None
        return operator(call.func.id).factory(*positional, **named)

    def __repr__(self) -> str:
        signature = inspect.signature(operator(self.name).factory).parameters
        parts: list[str] = []
        named = False
        for key, value in self.arguments:
            named = named or key not in POSITIONAL
            if value != signature[key].default:
                parts.append(f"{key}={value!r}" if named else repr(value))
        return f"{self.name}({', '.join(parts)})"


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


# -- the registry --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One case that every law runs on.

    Args:
        spec: the operator.
        domain: makes the domain.
        channels: of the input.
        row_stochastic: declares that the rows of S sum to 1.
    """

    spec: OperatorSpec
    domain: Callable[[], Domain]
    channels: int
    row_stochastic: bool = False

    @property
    def name(self) -> str:
        return repr(self.spec)


@dataclass(frozen=True)
class Operator:
    """An entry of the registry: a factory with its samples and source."""

    name: str
    factory: Callable[..., OperatorSpec]
    samples: Callable[[], list[Sample]]
    citation: str


_OPERATORS: dict[str, Operator] = {}


def register(
    *, samples: Callable[[], list[Sample]], citation: str, init: Literal["fan_in", "glorot"] = "fan_in"
) -> Callable[[Callable[..., Any]], Callable[..., OperatorSpec]]:
    """Enter a factory into the registry.

    The factory returns `(structure, mixing, bias)`; what it was given becomes the identity of the spec.

    Args:
        samples: makes the cases that the laws run on.
        citation: the source, one line.
        init: how weights start.
    """

    def enter(make: Callable[..., tuple[Structure, Mixing | Parametrised, bool]]) -> Callable[..., OperatorSpec]:
        signature = inspect.signature(make)

        @wraps(make)
        def factory(*args: Any, **kwargs: Any) -> OperatorSpec:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            arguments = tuple((key, _frozen(value)) for key, value in bound.arguments.items())
            structure, mixing, bias = make(**dict(arguments))
            return OperatorSpec(make.__name__, arguments, structure, mixing, bias, init)

        factory.__annotations__ = {**make.__annotations__, "return": OperatorSpec}
        if make.__name__ in _OPERATORS:
            raise ValueError(f"An operator named {make.__name__} is registered already.")
        _OPERATORS[make.__name__] = Operator(make.__name__, factory, samples, citation)
        return factory

    return enter


def operator(name: str) -> Operator:
    """The registered operator of this name.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    import gconv.operators  # noqa: F401  (registers the library's own)

    if name not in _OPERATORS:
        raise ValueError(f"There is no operator named {name!r}; there are {', '.join(sorted(_OPERATORS))}.")
    return _OPERATORS[name]


def list_operators() -> list[str]:
    """The names of all registered operators.

    >>> "cheb" in list_operators() and "conv2d" in list_operators()
    True
    """
    import gconv.operators  # noqa: F401

    return sorted(_OPERATORS)


def cite(spec: OperatorSpec | str) -> str:
    """The source of an operator.

    >>> cite("gcn")
    'Kipf and Welling, Semi-Supervised Classification with Graph Convolutional Networks, ICLR 2017'
    """
    return operator(spec if isinstance(spec, str) else spec.name).citation
