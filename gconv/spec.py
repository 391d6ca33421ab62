"""OperatorSpec: a convolution as data, and the registry of operators.

    Y = sum_k S_k X W_k + b

A spec consists of a structure (which input site feeds which output site through which tap), a mixing (the linear map of
the channels) and a flag for the bias. It holds no weights and no domain.
"""

from __future__ import annotations

import ast
import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, ParamSpec, cast, get_type_hints

import torch
from torch import Tensor

from gconv import arguments as given
from gconv.arguments import checked, plural
from gconv.basis import Basis
from gconv.caches import function
from gconv.call import Call
from gconv.domains import Bipartite, Graph, Grid
from gconv.mixing import Mixing, Parametrised

Domain = Grid | Graph | Bipartite
MAX_TEXT = 4000  # characters of a printed spec
POSITIONAL = ("in_channels", "out_channels", "channels", "kernel_size")  # printed without their names


class NotLinear(ValueError):
    """The operator has no matrix, adjoint or spectrum, because a tap reduces with max.

    >>> from gconv import GConv, Grid
    >>> from gconv.operators import max_pool2d
    >>> try:
    ...     GConv(max_pool2d(2)).at(Grid((4, 4)))
    ... except NotLinear as error:
    ...     print(error)
    max_pool2d(2) takes a maximum over its window, so it has no matrix, adjoint or spectrum.
    """


class OutsideFamily(ValueError):
    """The convolution does not have the form sum_k S_k X W_k; the message says which assumption fails.

    >>> import gconv
    >>> try:
    ...     gconv.twin(torch.nn.PixelShuffle(2))
    ... except OutsideFamily:
    ...     print("no twin: it moves pixels into channels")
    no twin: it moves pixels into channels
    """


class Inadmissible(ValueError):
    """The requested lowering cannot run this structure; the message says why.

    >>> from gconv import GConv
    >>> from gconv.operators import conv2d
    >>> try:
    ...     GConv(conv2d(1, 1, 3))(torch.zeros(1, 1, 5, 5), lowering="gft")
    ... except Inadmissible as error:
    ...     print(error)
    The lowering 'gft' cannot run this operator: it needs multipliers of a Fourier basis, and this structure is Shifts.
    """


@dataclass(frozen=True)
class Parameter:
    """A learned tensor of a structure: its shape and its initialisation.

    Args:
        shape: of the tensor.
        init: "uniform" in [-value, value], or "constant".
        value: the bound; or the constant, or all entries in row-major order.
    """

    shape: tuple[int, ...]
    init: Literal["uniform", "constant"] = "uniform"
    value: float | tuple[float, ...] = 1.0

    def start(self, dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
        """An initial tensor."""
        if isinstance(self.value, tuple):
            return torch.tensor(self.value, dtype=dtype, device=device).reshape(self.shape)
        empty = torch.empty(self.shape, dtype=dtype, device=device)
        return empty.uniform_(-self.value, self.value) if self.init == "uniform" else empty.fill_(self.value)


Theta = Mapping[str, Tensor]


Kind = Literal["fixed", "learned", "adaptive"]
Reads = Literal["source", "both"] | None
SQUARE = "its structure is a function of a square matrix (its powers, its eigenvectors or its degrees)"


class Structure(ABC):
    """The site part of an operator: frozen, hashable, without weights. Derive from `GraphStructure` or `GridStructure`.

    A subclass defines `taps` and `basis`, and overrides the defaults of the following where needed, each as a class
    attribute (without an annotation, which would make it a field of the dataclass), a field or a property:

    domain: "graph", "grid" or "any".
    kind: what S depends on: "fixed": the domain only; "learned": also parameters; "adaptive": also x.
    many: for an adaptive structure, whether `basis` takes signals (*b, n, i) and returns separate matrices for each in
        one call; otherwise it is called for each signal (n, i) separately.
    dropout: the share of S's values that is dropped in training.
    nodes: the size of the graph that its parameters belong to; None if they fit any graph.
    reads: what it reads on a `Bipartite`: "source": the sources' features; "both": also the targets' features; None if
        it needs a square domain; `square` is then the reason.
    reads_block: the same for a block sampled from one graph, which knows the degrees of the whole graph and whose
        targets are the first of its sources; used if `reads` is None.
    """

    if TYPE_CHECKING:  # read-only, so that a property may stand for each of them

        @property
        def taps(self) -> int: ...

        @property
        def domain(self) -> Literal["grid", "graph", "any"]: ...

        @property
        def kind(self) -> Kind: ...

        @property
        def many(self) -> bool: ...

        @property
        def dropout(self) -> float: ...

        @property
        def nodes(self) -> int | None: ...

        @property
        def reads(self) -> Reads: ...

        @property
        def reads_block(self) -> Reads: ...

        @property
        def square(self) -> str: ...
    else:
        kind, many, dropout, nodes, reads, reads_block, square = "fixed", False, 0.0, None, None, None, SQUARE

    def parameters(self) -> dict[str, Parameter]:
        """The learned parameters, by name."""
        return {}

    @abstractmethod
    def basis(self, domain: Any, theta: Theta, call: Call) -> Basis:
        """S on a domain.

        Args:
            domain: where the operator is applied.
            theta: the structure's parameters, by name.
            call: the current call; `call.x` is the signal (*b, n, i). For an adaptive structure it is a single signal
                (n, i), unless `many` is set.
        """

    def target(self, domain: Any) -> Domain:
        """The domain of the output; by default that of the input."""
        return domain


class GraphStructure(Structure):
    """A structure on graphs, whose output is a signal on the same graph."""

    domain: ClassVar[Literal["graph"]] = "graph"


class GridStructure(Structure):
    """A structure on grids of `ndim` axes."""

    domain: ClassVar[Literal["grid"]] = "grid"

    if TYPE_CHECKING:

        @property
        def ndim(self) -> int: ...

    @abstractmethod
    def target(self, domain: Any) -> Domain: ...


@dataclass(frozen=True)
class OperatorSpec:
    """A convolution as data.

    Args:
        name: of the factory.
        arguments: of the factory; two specs are equal if name and arguments (and bias and init) are.
        structure, mixing: the two parts.
        bias: whether a learned number is added to each channel.
        init: initialisation of the weight: "fan_in" as in torch's layers, "glorot" (with zero bias) as in the graph
            papers.
        sides: channels of the sources and of the targets, if in_channels was a pair.

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
    sides: tuple[int, int] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        self._check_parts()
        if self.structure.taps != self.mixing.taps:
            raise ValueError(
                f"{self.name}: the structure has {plural(self.structure.taps, 'tap')}, but the mixing has "
                f"{self.mixing.taps}; they must be the same."
            )
        learned = ", ".join(self.structure.parameters()) if self.structure.kind == "fixed" else ""
        if learned:
            raise ValueError(
                f"{self.name}: its structure learns {learned}, so its kind must be 'learned' (or 'adaptive', where S "
                "also depends on x), but it is 'fixed'."
            )
        one = self.structure.reads != "both" or getattr(self.mixing, "i", None) != max(self.sides or (0,))
        if self.sides is not None and one:
            raise ValueError(
                f"in_channels={self.sides} gives sources and targets different channels, but {self.name} with these "
                "options reads one signal: give one number."
            )

    def _check_parts(self) -> None:
        """Check that structure and mixing have the attributes that the engine needs. Raises: TypeError."""
        if not isinstance(self.name, str):
            raise TypeError(f"The name of an operator must be a string, but it is a {type(self.name).__name__}.")
        if not isinstance(self.structure, Structure):
            raise TypeError(
                f"{self.name}: its structure, a {type(self.structure).__name__}, must be derived from "
                "gconv.spec.GraphStructure or GridStructure."
            )
        learned = self.structure.parameters()
        if not isinstance(learned, dict) or not all(isinstance(p, Parameter) for p in learned.values()):
            raise TypeError(
                f"{self.name}: parameters() of its structure, a {type(self.structure).__name__}, must return a dict of "
                f"names to gconv.spec.Parameter, but it returned {given.shown(learned)}."
            )
        axes = ("ndim",) if isinstance(self.structure, GridStructure) else ()
        for role, part, names in (
            ("structure", self.structure, ("taps", "domain", *axes)),
            ("mixing", self.mixing, ("taps", "shape", "fan_in", "channels")),
        ):
            missing = [name for name in names if not hasattr(part, name)]
            if missing:
                raise TypeError(
                    f"{self.name}: its {role}, a {type(part).__name__}, has no {' and no '.join(missing)}; "
                    f"a {role} needs {', '.join(names)}."
                )
            try:
                hash(part)
            except TypeError as error:
                raise TypeError(
                    f"{self.name}: its {role}, a {type(part).__name__}, cannot be hashed ({error}); make it a frozen "
                    "dataclass whose fields are numbers, strings and tuples of them."
                ) from None

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """A spec has no weights, so it cannot be applied. Raises: TypeError."""
        raise TypeError(f"{self} is a spec, which has no weights: make a layer, layer = GConv({self}), and call that.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold."""
        return {"operator": self.name, **{key: _plain(value) for key, value in self.arguments}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OperatorSpec:
        """The spec that `to_dict` described.

        Raises:
            ValueError: if data is not such a description, the operator is unknown, or an argument has a wrong value.
            TypeError: if an argument is unknown or missing.
        """
        if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
            kind = "a mapping whose keys are not strings" if isinstance(data, Mapping) else f"a {type(data).__name__}"
            raise ValueError(f'from_dict takes what to_dict returns, such as {{"operator": "gcn", ...}}, not {kind}.')
        rest = {key: value for key, value in data.items() if key != "operator"}
        return operator(data.get("operator", "")).factory(**rest)

    @classmethod
    def parse(cls, text: str) -> OperatorSpec:
        """The spec from its repr, e.g. `"cheb(16, 32, k=3)"`; only literals are read, nothing is executed.

        Raises:
            ValueError: if the text is not a call of a known operator with literals, or too long.
        """
        if not isinstance(text, str):
            raise ValueError(
                f"parse takes an operator with its arguments, such as 'cheb(16, 32, k=3)', not a {type(text).__name__}."
            )
        try:
            call = ast.parse(text.strip(), mode="eval").body if len(text) <= MAX_TEXT else None
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                raise ValueError
            positional = [ast.literal_eval(a) for a in call.args]
            named = {a.arg: ast.literal_eval(a.value) for a in call.keywords if a.arg is not None}
            if len(named) < len(call.keywords):
                raise ValueError
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            raise ValueError(
                f"{given.shown(text)} is not an operator with its arguments, such as 'cheb(16, 32, k=3)'."
            ) from None
        return operator(call.func.id).factory(*positional, **named)

    def __repr__(self) -> str:
        known = _OPERATORS.get(self.name)
        signature = inspect.signature(known.factory).parameters if known else {}
        parts: list[str] = []
        named = False
        for key, value in self.arguments:
            named = named or key not in POSITIONAL
            if key not in signature or value != signature[key].default:
                parts.append(f"{key}={value!r}" if named else repr(value))
        return f"{self.name}({', '.join(parts)})"


def _two_numbers(name: str, pair: tuple[Any, ...]) -> tuple[int, int]:
    whole = all(isinstance(c, int) and not isinstance(c, bool) and c > 0 for c in pair)
    if len(pair) != 2 or not whole:
        raise ValueError(
            f"{name}: in_channels must be a positive integer, or two of them for sources and targets, not {pair!r}."
        )
    return pair[0], pair[1]


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


# -- the registry --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A test case of an operator, on which all laws run.

    Args:
        spec: the operator.
        domain: returns the domain.
        channels: of the input.
        row_stochastic: whether the rows of S sum to 1.
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
    """An entry of the registry: a factory, its samples and its source."""

    name: str
    factory: Callable[..., OperatorSpec]
    samples: Callable[[], list[Sample]]
    citation: str


_OPERATORS: dict[str, Operator] = {}


P = ParamSpec("P")
Parts = tuple[Structure, Mixing | Parametrised, bool]  # what a factory returns: structure, mixing, bias


def register(
    *,
    samples: Callable[[Callable[..., OperatorSpec]], list[Sample]],
    citation: str,
    init: Literal["fan_in", "glorot"] = "fan_in",
) -> Callable[[Callable[P, Parts]], Callable[P, OperatorSpec]]:
    """A decorator that adds a factory to the registry.

    The factory returns `(structure, mixing, bias)`; its name and arguments identify the spec. Numbers and arrays of
    numpy and torch, and lists, are converted to Python's numbers and tuples first. Each argument is checked against its
    annotation (int, float, bool, str, None, Literal, and tuples and unions of them). Defining an operator again in the
    same module, as in a notebook, replaces it with a warning.

    Args:
        samples: takes the registered factory and returns the test cases.
        citation: the source, one line.
        init: initialisation of the weight, see `OperatorSpec`.

    Raises:
        ValueError: if another module has registered an operator of this name.
    """

    def enter(make: Callable[P, Parts]) -> Callable[P, OperatorSpec]:
        signature, name = inspect.signature(make), make.__name__

        @wraps(make)
        def factory(*args: P.args, **kwargs: P.kwargs) -> OperatorSpec:
            bound = given.bind(signature, name, args, kwargs)
            bound.apply_defaults()
            arguments = _read_arguments(make, bound.arguments)
            pair = arguments.get("in_channels")
            sides = _two_numbers(name, pair) if isinstance(pair, tuple) else None  # of sources and targets
            _check_types(make, arguments, (bool, float))  # operators check integers and words in more detail
            _check_finite(make, arguments)
            try:
                structure, mixing, bias = cast(Callable[..., Parts], make)(**arguments)
            except (TypeError, AttributeError, LookupError, AssertionError, ArithmeticError, RecursionError) as error:
                _check_types(make, arguments)
                what = ", ".join(f"{key}={given.shown(value)}" for key, value in arguments.items())
                raise ValueError(f"{name} does not accept {what}: {error or type(error).__name__}.") from error
            _check_types(make, arguments)
            return OperatorSpec(name, tuple(arguments.items()), structure, mixing, bias, init, sides)

        factory.__annotations__ = {**make.__annotations__, "return": OperatorSpec}
        vars(factory)["__signature__"] = signature.replace(return_annotation=OperatorSpec)
        known = _OPERATORS.get(name)
        if known is not None:
            if known.factory.__module__ != make.__module__:
                raise ValueError(
                    f"An operator named {name} is registered already, by {known.factory.__module__}; "
                    "choose another name."
                )
            warnings.warn(
                f"The operator {name} was defined before in {make.__module__}; this definition replaces it. "
                "Existing specs and layers keep the former one.",
                stacklevel=2,
            )
        _OPERATORS[name] = Operator(name, factory, partial(samples, factory), citation)
        return factory

    return enter


def _read_arguments(make: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as Python's numbers, strings and tuples; 0 and 1 as bool where the annotation is bool."""
    read = {key: given.plain(value, f"{make.__name__}: {key}") for key, value in arguments.items()}
    flags = (key for key, hint in _hints(make).items() if hint is bool)
    return read | {key: bool(read[key]) for key in flags if type(read.get(key)) is int and read[key] in (0, 1)}


def _check_finite(make: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse NaN and infinity. Raises: ValueError."""
    for key, value in arguments.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{make.__name__}: {key} must be finite, but it is {given.shown(value)}.")


def _check_types(make: Callable[..., Any], arguments: Mapping[str, Any], only: tuple[type, ...] = ()) -> None:
    """Check arguments against their annotations. Raises: ValueError, like all checks of an operator's arguments."""
    for key, hint in _hints(make).items():
        if key in arguments and (not only or hint in only) and not given.fits(arguments[key], hint):
            raise ValueError(
                f"{make.__name__}: {key} must be {given.described(hint)}, but it is {given.shown(arguments[key])}."
            )


@function("annotations of factories")
def _hints(make: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(make)
    except Exception:  # annotations that cannot be evaluated are not checked
        return {}


def operator(name: str) -> Operator:
    """The registered operator of this name.

    Raises:
        ValueError: if there is none; the message suggests the closest name, or lists all.
    """
    if not isinstance(name, str) or name not in _OPERATORS:
        near = given.near(name, list(_OPERATORS)) if isinstance(name, str) else ""
        rest = f"{near} list_operators() names all." if near else f"; there are {', '.join(sorted(_OPERATORS))}."
        raise ValueError(
            f"There is no operator named {name[:60] if isinstance(name, str) else given.shown(name)!r}{rest}"
        )
    return _OPERATORS[name]


def list_operators() -> list[str]:
    """The names of all registered operators.

    >>> "cheb" in list_operators() and "conv2d" in list_operators()
    True
    """
    return sorted(_OPERATORS)


@checked
def cite(spec: OperatorSpec | str) -> str:
    """The source of an operator.

    >>> cite("gcn")
    'Kipf and Welling, Semi-Supervised Classification with Graph Convolutional Networks, ICLR 2017'
    """
    return operator(spec.name if isinstance(spec, OperatorSpec) else spec).citation
