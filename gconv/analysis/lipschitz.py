"""Lipschitz bounds of whole networks."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from gconv.analysis.calls import arguments, graph_of, input_like, takes_graph
from gconv.analysis.functional import as_module
from gconv.analysis.norms import norm, norm_bound
from gconv.analysis.numbers import power_of_two, spectral_norm, wider
from gconv.analysis.tracing import trace
from gconv.arguments import checked, kind_of
from gconv.basis import Basis, Stack, entries
from gconv.binding import bind
from gconv.domains import Bipartite, Grid
from gconv.errors import InputError, first_line
from gconv.interop.layers import Chain, EngineCall, Layer, Other, engine_call, identify
from gconv.linear import LinearMap
from gconv.mixing import plain
from gconv.spec import NotLinear, OutsideFamily

# the Lipschitz constant of each activation, rounded up
SLOPES: dict[type[nn.Module], float] = {
    nn.ReLU: 1.0,
    nn.ReLU6: 1.0,
    nn.Hardtanh: 1.0,
    nn.Tanh: 1.0,
    nn.Softsign: 1.0,
    nn.Softplus: 1.0,
    nn.LogSigmoid: 1.0,
    nn.CELU: 1.0,
    nn.Sigmoid: 0.25,
    nn.Hardsigmoid: 1 / 6,
    nn.Hardswish: 1.5,
    nn.SELU: 1.7581,
    nn.GELU: 1.13,
    nn.SiLU: 1.1,
    nn.Mish: 1.1,
    nn.Softmax: 0.5,
    nn.Identity: 1.0,
    nn.Flatten: 1.0,
    nn.Unflatten: 1.0,
    nn.ZeroPad1d: 1.0,
    nn.ZeroPad2d: 1.0,
    nn.ZeroPad3d: 1.0,
}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
Rule = Callable[[Any, Callable[[nn.Module], float]], float]

# functions and methods of tensors, by name; these have Lipschitz constant 1 (indexing may repeat entries, see _rule)
REARRANGES = {
    "flatten", "view", "reshape", "unflatten", "permute", "transpose", "t", "T", "mT", "swapaxes", "movedim", "squeeze",
    "unsqueeze", "contiguous", "clone", "detach", "to", "float", "double", "type_as", "chunk", "split", "unbind",
    "getitem", "narrow", "select", "flip", "roll", "pixel_shuffle", "pixel_unshuffle", "neg", "abs", "absolute",
    "relu", "relu_", "relu6", "hardtanh", "tanh", "softsign",
}  # fmt: skip
SIZES = {"size", "dim", "ndim", "shape", "numel", "len", "dtype", "device", "is_cuda", "layout"}
SUMS = {"add", "add_", "iadd", "sum"}
DIFFERENCES = {"sub", "sub_", "isub", "subtract"}
PRODUCTS = {"mul", "mul_", "imul", "multiply", "div", "div_", "divide", "truediv", "itruediv"}


@checked
def lipschitz_bound(
    model: nn.Module,
    x: Any,
    domain: Any = None,
    *,
    certified: bool = True,
    rules: Mapping[type[nn.Module], Rule] | None = None,
) -> float:
    """A number L with |f(x) - f(y)| <= L |x - y| for all inputs, in the Euclidean norm.

    Equation: L is the product over the layers of ||A|| (linear layers: the norm of the operator on this grid or graph,
    not of the reshaped kernel), max |slope| (activations), sqrt(overlap) (maxima: how often a site is read, weighted),
    and max |gamma| / sqrt(var + eps) (batch norm in eval mode). For sums of branches L is the sum, for concatenations
    the root of the sum of squares: for x + f(x) it is 1 + L_f.

    Meaning: inputs that differ by less than margin / (sqrt(2) L) are assigned the same class. The product is an upper
    bound, often far above the smallest Lipschitz constant.

    Cost: `norm_bound` (certified) or `norm` of every linear layer, and one forward pass of a zero input for the shapes.

    Args:
        model: layers of gconv, torch.nn or PyG, converted or not, parametrised or not; alone, in an nn.Sequential, or
            in modules whose forward torch.fx can trace (residual networks); in eval mode.
        x: an input without its batch axis, (c, *grid) or (n, c), or its shape.
        domain: the graph, for layers on graphs.
        certified: whether to use guaranteed upper bounds of the norms. False uses the norms themselves, which are
            smaller, but those computed by Lanczos are lower bounds.
        rules: bounds for other modules: rule(module, bound) -> number, where bound(part) is the bound of a submodule at
            the same input, for example `{Block: lambda m, bound: 1 + bound(m.body)}`.

    Raises:
        TypeError: if no bound is known for a module or function; the message says what to do.
        ValueError: if batch norm or dropout is in training mode, or a layer uses attention, which is not Lipschitz.

    >>> from gconv import GConv
    >>> from gconv.operators import conv2d, max_pool2d
    >>> net = nn.Sequential(GConv(conv2d(1, 4, 3, padding=1)), nn.ReLU(), GConv(max_pool2d(2)), nn.Flatten())
    >>> lipschitz_bound(net, (1, 8, 8)) < 4
    True
    >>> from gconv.blocks import Shortcut
    >>> lipschitz_bound(Shortcut(nn.Identity()), (1, 8, 8))  # x + x
    2.0

    Source: Szegedy et al., Intriguing Properties of Neural Networks, ICLR 2014; for operator norms of convolutions on
    their grid Ryu et al., Plug-and-Play Methods Provably Converge, ICML 2019.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"lipschitz_bound takes a torch module, but {kind_of(model)} was given.")
    if rules is not None and not (isinstance(rules, Mapping) and all(map(callable, rules.values()))):
        raise TypeError("rules must map module classes to functions (module, bound) -> number.")
    like = input_like(x, "lipschitz_bound", model)
    parameter = next((p for p in model.parameters() if p.is_floating_point() or p.is_complex()), like)
    zero = torch.zeros(like.shape, dtype=parameter.dtype, device=parameter.device)
    zero = zero if domain is not None else zero.unsqueeze(0)
    graph = None if domain is None else graph_of(domain, zero.shape[-2])
    walker = _Walker(norm_bound if certified else norm, dict(rules or {}))
    try:
        with torch.no_grad():
            return walker.factor(model, zero, graph)
    except (InputError, OutsideFamily) as error:
        if domain is None and (like.ndim > 3 or isinstance(error, InputError)):
            shape = tuple(like.shape)
            raise InputError(
                f"lipschitz_bound adds a batch axis to its input x, here of shape {shape}: {error}"
            ) from error
        raise


@dataclass(eq=False)
class _Bounded:
    """An intermediate tensor for the zero input, and a Lipschitz bound of it as a function of the input."""

    value: Tensor
    bound: float


class _Walker:
    """Traverses a network layer by layer and propagates bounds."""

    def __init__(self, measure: Callable[..., float], rules: dict[type[nn.Module], Rule]) -> None:
        self.measure, self.rules = measure, rules
        self.overwritten: list[_Bounded] = []  # tensors modified in place

    def factor(self, module: nn.Module, x: Tensor, domain: Any = None) -> float:
        """The bound of a module at an input of this shape."""
        out = self.run(module, (_Bounded(x, 1.0),), {}, domain)[0]
        if not isinstance(out, _Bounded):
            raise TypeError(f"{type(module).__name__} must return one tensor, but it returned {kind_of(out)}.")
        return out.bound

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], domain: Any) -> tuple[Any, Any]:
        """module(*args, **kwargs) with bounds, and the domain of the result."""
        found = identify(module)
        name = type(module).__name__
        if isinstance(found, Other) and not found.follows and type(module) not in self.rules:
            raise TypeError(f"No bound is known for {name}: {found.reason}; {_advice(module)}")
        if isinstance(found, Chain) and isinstance(module, nn.Sequential) and type(module) not in self.rules:
            x: Any = args[0]
            for part in found.parts:
                x, domain = self.run(part, (x,), {}, domain)
            return x, domain
        x = args[0] if args else None
        if not isinstance(x, _Bounded) or any(isinstance(value, _Bounded) for value in (*args[1:], *kwargs.values())):
            if isinstance(found, Other) and not _of_library(module):
                return self.follow(module, args, kwargs), domain
            raise TypeError(f"No bound is known for {name} of several inputs; {_advice(module)}")
        if isinstance(found, Other) and not _of_library(module) and type(module) not in self.rules:
            if len(args) == 1 and not kwargs:
                more, kwargs = arguments(module, x.value, domain)
                args = (x, *more)
            return self.follow(module, args, kwargs), domain
        plain_args = (x.value, *args[1:])
        if isinstance(found, Layer) and len(args) == 1 and not kwargs and type(module) not in self.rules:
            graph = domain if takes_graph(found, domain) else None
            bound = self._layer(found, found.enter(x.value, graph))
            more, kwargs = ((graph,), {}) if found.peer is None else arguments(module, x.value, graph)
            y = module(x.value, *more, **kwargs) if graph is not None else module(x.value)
            return _Bounded(y, x.bound * bound), domain if graph is None else found.spec.structure.target(graph)
        before = x.value._version
        bound = self._bound(module, found, plain_args, kwargs, domain)
        if type(module) in self.rules and len(args) == 1 and not kwargs:
            more, kwargs = arguments(module, x.value, domain)
            plain_args = (x.value, *more)
        y = _Bounded(module(*plain_args, **kwargs), x.bound * bound)
        self._note(x, before, y.bound)
        return y, domain

    def _note(self, x: _Bounded, before: int, bound: float) -> None:
        """Record x, whose views are affected as well, if it was modified in place."""
        if x.value._version != before:
            self.overwritten.append(_Bounded(x.value, bound))

    def _bound(self, module: Any, found: Any, args: tuple[Any, ...], kwargs: dict[str, Any], domain: Any) -> float:
        """The bound of a single module with one input."""
        kind, x = type(module), args[0]
        if kind in self.rules:
            return float(self.rules[kind](module, lambda part: self.factor(part, x, domain)))
        if isinstance(found, Layer):
            try:
                return self._layer(found, engine_call(module, *args, **kwargs))
            except OutsideFamily as reason:
                raise TypeError(f"No bound is known for {kind.__name__}: {reason} {_advice(module)}") from None
        if isinstance(module, NORMS):
            if module.training or module.running_var is None:
                raise ValueError(
                    "Batch norm in training mode divides by the standard deviation of its batch and has no Lipschitz "
                    "bound: call model.eval()."
                )
            variance = module.running_var.double()
            gamma = torch.ones_like(variance) if module.weight is None else module.weight.double()
            return float((gamma.abs() / (variance + module.eps).sqrt()).max())
        if kind in DROPOUTS:
            if module.training and module.p:
                raise ValueError("Dropout in training mode is random and has no Lipschitz bound: call model.eval().")
            return 1.0
        if kind is nn.LeakyReLU:
            return max(1.0, abs(module.negative_slope))
        if kind is nn.PReLU:
            return max(1.0, float(module.weight.double().abs().max()))
        if kind is nn.ELU:
            return max(1.0, abs(module.alpha))
        if kind is nn.CELU and module.alpha < 0:
            raise ValueError("CELU with a negative alpha has no Lipschitz bound: exp(x / alpha) grows without limit.")
        if kind is nn.Softplus and module.threshold < 20:
            raise ValueError(
                f"Softplus with threshold={module.threshold:g} jumps where beta x exceeds the threshold, so it has no "
                "Lipschitz bound: use a threshold of at least 20, torch's default, where the jump is rounding."
            )
        if kind in SLOPES:
            return SLOPES[kind]
        raise TypeError(f"No bound is known for {kind.__name__}; {_advice(module)}")

    # -- layers --------------------------------------------------------------------------------------------------

    def _layer(self, layer: Layer, asked: EngineCall) -> float:
        """The norm of a layer on the domain of a call, or a bound if it takes maxima."""
        if layer.after:
            raise TypeError(f"No bound is known for {layer.name}: {layer.after}; {_advice(layer.module)}")
        gconv, x = asked.gconv, asked.x
        structure = gconv.spec.structure
        if structure.kind == "adaptive":
            raise ValueError(
                f"The structure of {gconv.spec.name} depends on the signal, so it is not Lipschitz; freeze it at a "
                "signal, layer.at(graph, x=x0), and use norm on that map."
            )
        if structure.domain == "graph" or (structure.domain == "any" and not isinstance(asked.domain, Grid | None)):
            if asked.domain is None:
                raise ValueError(f"{gconv.spec.name} works on a graph: give the graph as the domain.")
            place: Any = asked.graph()
            signal = x
        else:
            ndim = getattr(structure, "ndim", x.ndim - 2 if asked.domain is None else asked.domain.ndim)
            place = Grid.of(x, ndim)
            signal = x.flatten(-ndim).mT
        signal = signal.flatten(0, -3)[0] if signal.ndim > 2 else signal
        try:
            A = gconv.at(place, signal)
            return self.measure(_without_ones(A) if layer.peer is not None and layer.peer.affine(layer.module) else A)
        except NotLinear:
            if isinstance(place, Bipartite):
                raise TypeError(
                    f"No bound is known for {layer.name} between two sets of nodes; {_advice(layer.module)}"
                ) from None
        theta = {name: p for name, p in gconv._parameters.items() if p is not None}
        S = bind(structure, place, theta, gconv._call(signal))
        mixing, W = plain(gconv.spec.mixing, gconv.weight)
        weights = mixing.dense(W, signal.shape[-1])
        parts: tuple[Basis, ...] = S.parts if isinstance(S, Stack) else (S,)
        total, k = 0.0, 0
        for part in parts:
            size = spectral_norm(weights[k : k + part.shape[0]])
            total, k = total + _of_taps(part, signal) * size, k + part.shape[0]
        return total

    # -- traced modules ------------------------------------------------------------------------------------------

    def follow(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Propagate bounds through the torch.fx trace of a module, node by node."""
        try:
            graph, env = trace(module, args, kwargs)
        except Exception as error:
            raise TypeError(
                f"No bound is known for {type(module).__name__}: torch.fx cannot trace its forward "
                f"({first_line(error)}); {_advice(module)}"
            ) from None
        for node in graph.nodes:
            inputs, options = fx.node.map_arg((node.args, node.kwargs), lambda n: env[n])
            if node.op == "output":
                return inputs[0]
            known = len(self.overwritten)
            if node.op == "get_attr":
                env[node] = operator.attrgetter(str(node.target))(module)
            elif node.op == "call_module":
                part = module.get_submodule(str(node.target))
                if _any_bounded(inputs) or _any_bounded(options):
                    env[node] = self.run(part, tuple(inputs), dict(options), None)[0]
                else:
                    env[node] = part(*inputs, **options)
            elif node.op != "placeholder":
                function = node.target
                if node.op == "call_method":
                    function = getattr(torch.Tensor, str(node.target), None)
                env[node] = self._function(module, str(node.target), function, tuple(inputs), dict(options))
            self._spread(self.overwritten[known:], env)
        return None

    def _spread(self, overwritten: list[_Bounded], env: dict[Any, Any]) -> None:
        """Raise the bounds of all tensors that share the storage of one that was modified in place."""
        for old in overwritten:
            for seen in _leaves(list(env.values())):
                if isinstance(seen, _Bounded) and _same_storage(seen.value, old.value):
                    whole = seen.value.numel() == old.value.numel()  # else a part of it was overwritten
                    seen.bound = max(seen.bound, old.bound) if whole else math.hypot(seen.bound, old.bound)

    def _function(self, module: nn.Module, target: str, function: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """function(*args, **kwargs) with bounds."""
        tracked = [part for part in _leaves((args, kwargs)) if isinstance(part, _Bounded)]
        function = function if callable(function) else lambda x, *more, **rest: getattr(x, target)(*more, **rest)
        if not tracked or (_name_of(function) == "getitem" and not isinstance(args[0], _Bounded)):
            return function(*args, **kwargs)  # constants, or an element of a tuple of results
        before = tracked[0].value._version
        name = _name_of(function) or target
        if name == "getattr":
            name = args[1]
        out = function(*_strip(args), **_strip(kwargs))
        if name in SIZES:
            return out
        bound = self._rule(name, out, args, kwargs, tracked)
        if bound is None:
            raise TypeError(
                f"No bound is known for {name}, which {type(module).__name__} calls; give one for the whole module, "
                f"{_advice(module).removeprefix('give one, ')}"
            )
        self._note(tracked[0], before, bound)
        return _wrap(out, bound)

    def _rule(self, name: str, out: Any, args: Any, kwargs: Any, tracked: list[_Bounded]) -> float | None:
        """The bound of the output; None if no rule applies."""
        first, alone = tracked[0], len(tracked) == 1
        if name in ("cat", "concat", "concatenate", "stack"):
            return math.hypot(*(t.bound for t in tracked))
        if name in ("maximum", "minimum") or (name in ("max", "min") and not alone):
            return math.hypot(*(t.bound * _repeats(t.value, out) for t in tracked))
        if name in SUMS | DIFFERENCES and not (name == "sum" and alone) and isinstance(out, Tensor):
            alpha = max(1.0, abs(kwargs.get("alpha", 1)))
            return alpha * sum(t.bound * _repeats(t.value, out) for t in tracked)
        if not alone:
            return None
        if name in PRODUCTS and isinstance(out, Tensor) and len(args) == 2 and not kwargs:
            other = args[1] if args[0] is first else args[0]
            if "div" in name and args[0] is not first:
                return None
            size = torch.as_tensor(other).to(torch.complex128).abs()
            size = size.reciprocal() if "div" in name else size
            return first.bound * float(size.max()) * _repeats(first.value, out)
        if args[0] is not first:
            return None
        if name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"):
            training = kwargs.get("training", args[2] if len(args) > 2 else True)
            if training and kwargs.get("p", args[1] if len(args) > 1 else 0.5):
                raise ValueError("Dropout in training mode is random and has no Lipschitz bound: call model.eval().")
            return first.bound
        if name in ("mean", "sum") and isinstance(out, Tensor):
            count = max(1, first.value.numel()) / max(1, out.numel())
            return first.bound * (count**-0.5 if name == "mean" else count**0.5)
        if name == "getitem":
            return first.bound * _repeated_reads(first.value, args[1])
        if name in REARRANGES:  # a conversion to integers rounds
            return first.bound if all(t.is_floating_point() or t.is_complex() for t in _tensors(out)) else None
        if name == "pad" and kwargs.get("mode", args[2] if len(args) > 2 else "constant") == "constant":
            return first.bound
        if name == "matmul" and isinstance(args[1], Tensor) and args[1].ndim == 2:
            return first.bound * spectral_norm(args[1])
        made = as_module(name, args, kwargs)
        return None if made is None else first.bound * self.factor(made, first.value)


def _without_ones(A: LinearMap) -> LinearMap:
    """A map without its last input channel, the constant one of affine layers."""
    from dataclasses import replace

    assert A.W is not None
    i = A.i - 1
    return replace(A, mixing=replace(A.mixing, i=i), W=A.W[..., :i, :], i=i)  # type: ignore[type-var]


def _of_taps(S: Basis, like: Tensor) -> float:
    """The sum of a bound per tap; for maxima |max_j v_ij x_j - max_j v_ij y_j|^2 <= sum_j v_ij^2 |x_j - y_j|^2."""
    taps = entries(S, like.dtype, like.device)
    k, m, n = taps.shape
    size = taps.values.to(wider(taps.values.dtype)).abs()
    if taps.linear:  # sqrt(||S||_1 ||S||_inf)
        rows = size.new_zeros(k * m).index_add(0, taps.pattern.tap * m + taps.pattern.row, size).unflatten(0, (k, m))
        cols = size.new_zeros(k * n).index_add(0, taps.pattern.tap * n + taps.pattern.col, size).unflatten(0, (k, n))
        return float((rows.amax(1).sqrt() * cols.amax(1).sqrt()).sum())
    scale = power_of_two(size)
    cols = size.new_zeros(k * n).index_add(0, taps.pattern.tap * n + taps.pattern.col, (size / scale).square())
    return math.fsum(cols.unflatten(0, (k, n)).amax(1).sqrt().tolist()) * scale


def _name_of(function: Any) -> str:
    return getattr(function, "__name__", "")


def _of_library(module: nn.Module) -> bool:
    """Whether a module's class is defined in torch.nn (or derived from one by conversion or parametrisation)."""
    return type(module).__module__.startswith("torch.nn.")


def _advice(module: nn.Module) -> str:
    name = type(module).__name__
    return f"give one, rules={{{name}: lambda module, bound: ...}}, which returns an upper bound for the module."


def _repeats(x: Tensor, out: Tensor) -> float:
    """The factor by which broadcasting to the shape of `out` increases |x|."""
    return math.sqrt(max(1.0, out.numel() / max(1, x.numel())))


def _repeated_reads(x: Tensor, index: Any) -> float:
    """The factor by which indexing increases |x|: an index tensor or list may select an entry several times."""
    parts = index if isinstance(index, tuple) else (index,)
    if not any(isinstance(part, Tensor | list) for part in parts):
        return 1.0
    selected = torch.arange(x.numel(), device=x.device).view(x.shape)[index].flatten()
    return math.sqrt(float(selected.bincount().max())) if len(selected) else 1.0


def _same_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return _leaves(list(value.values()))
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value]


def _any_bounded(value: Any) -> bool:
    return any(isinstance(leaf, _Bounded) for leaf in _leaves(value))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in _leaves(value) if isinstance(leaf, Tensor)]


def _strip(value: Any) -> Any:
    """The values without their bounds."""
    if isinstance(value, _Bounded):
        return value.value
    if isinstance(value, dict):
        return {key: _strip(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_strip, value))
    return value


def _wrap(out: Any, bound: float) -> Any:
    """The result with this bound attached to every tensor."""
    if isinstance(out, Tensor):
        return _Bounded(out, bound)
    return type(out)(_wrap(part, bound) for part in out) if isinstance(out, list | tuple) else out
