"""Low-rank adapters (LoRA): fine-tune a frozen model by low-rank updates of its weights, and merge them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from gconv.arguments import checked, integer, near, plain, shown
from gconv.interop.convert import copied
from gconv.interop.peer import LeftAlone, base_class
from gconv.interop.peers import describe, is_layer
from gconv.mixing import Separable
from gconv.module import GConv
from gconv.reports import LayerReport

Model = TypeVar("Model", bound=nn.Module)
MERGED = "_merged_adapters"  # attribute of a merged layer: its adapters by parameter name


@dataclass(frozen=True)
class Layout:
    """How a parameter stores its matrices W_k (i, o).

    Args:
        groups: None if the last two axes are the matrix. A number g if the parameter is (g a, b, *kernel) as in torch's
            convolutions: g matrices (a, b) for each tap.
        transposed: whether the matrices are stored as (o, i).
        skip: number of leading rows that are not part of a matrix.
    """

    groups: int | None = None
    transposed: bool = False
    skip: int = 0

    def stack(self, weight: Tensor) -> tuple[int, ...]:
        """The shape (..., i, o) of the stack of matrices."""
        if self.groups is None:
            *axes, a, b = weight.shape
            shape = (*axes, a - self.skip, b)
        else:
            shape = (*weight.shape[2:], self.groups, weight.shape[0] // self.groups, weight.shape[1])
        return (*shape[:-2], shape[-1], shape[-2]) if self.transposed else shape

    def place(self, matrices: Tensor) -> Tensor:
        """Matrices (..., i, o) rearranged to the shape of the parameter."""
        matrices = matrices.mT if self.transposed else matrices
        if self.groups is None:
            return F.pad(matrices, (0, 0, self.skip, 0)) if self.skip else matrices
        d = matrices.ndim - 3
        return matrices.permute(d, d + 1, d + 2, *range(d)).flatten(0, 1)


class LowRank(nn.Module):
    """The parametrization of an adapted weight: W_k + scale A_k B_k.

    B is initialised to zero, so that the layer's output is unchanged at first. If A_k and B_k have at least as many
    entries as W_k (depthwise convolutions, a first layer with few channels), a full-rank update is learned instead:
    W_k + scale A_k.

    Args:
        weight: the parameter that is adapted.
        rank: r, the number of columns of A_k and rows of B_k.
        scale: factor of the update.
        layout: how the parameter stores its matrices.

    Shapes: A (..., i, r), B (..., r, o); without B, A (..., i, o).
    """

    def __init__(self, weight: Tensor, rank: int, scale: float = 1.0, layout: Layout | None = None) -> None:
        super().__init__()
        self.layout = Layout() if layout is None else layout
        self.scale = scale
        self.order: tuple[str, ...] = ()  # the layer's parameter names in their original order; restored by `merge`
        *axes, i, o = self.layout.stack(weight)
        rank = min(rank, i, o)
        full = rank * (i + o) >= i * o
        new = weight.new_zeros if full else weight.new_empty
        self.A = nn.Parameter(new(*axes, i, o if full else rank))
        if full:
            self.register_parameter("B", None)
        else:
            nn.init.uniform_(self.A, -1 / math.sqrt(i), 1 / math.sqrt(i))
            self.B = nn.Parameter(weight.new_zeros(*axes, rank, o))

    @property
    def rank(self) -> int | None:
        """r; None if the update has full rank."""
        return None if self.B is None else self.B.shape[-2]

    def difference(self) -> Tensor:
        """The update scale A_k B_k, in the shape of the parameter."""
        # without autocast, so that the sum with the weight is rounded once, by the layer
        with torch.autocast("cpu" if self.A.is_meta else self.A.device.type, enabled=False):
            product = self.A if self.B is None else self.A @ self.B
            return self.layout.place(product if self.scale == 1.0 else self.scale * product)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.difference()

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale}"


# -- the report ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adapted:
    """One layer of an adapted model.

    Args:
        path: its path in the model; "" is the model itself.
        layer: its class, or its operator.
        parameters: names of the parameters that have an adapter.
        added: number of entries of the adapters.
        reason: why the layer has no adapter.
    """

    path: str
    layer: str
    parameters: tuple[str, ...] = ()
    added: int = 0
    reason: str = ""

    def __str__(self) -> str:
        head = f"{self.path or '(the model)'}: {self.layer}"
        if self.parameters:
            return f"{head}: {self.added} parameters on {', '.join(self.parameters)}"
        return f"{head} left alone\n    {self.reason}"


@dataclass(frozen=True)
class AdapterReport(LayerReport[Adapted]):
    """The layers of an adapted model, in order; see `gconv.reports.LayerReport`.

    Args:
        entries: one for each layer.
        trained, frozen: how many entries of the parameters require gradients, and how many do not.
    """

    trained: int
    frozen: int

    @property
    def summary(self) -> str:
        adapted = sum(bool(entry.parameters) for entry in self)
        numbers = f"{self.trained} parameters are trained, {self.frozen} frozen"
        return f"{adapted} of {len(self)} layers have adapters; {numbers}."


# -- adapt, merge, unmerge -----------------------------------------------------------------------------------------


@checked
def adapt(
    model: Model,
    rank: int = 4,
    *,
    layers: Iterable[str] | None = None,
    scale: float = 1.0,
    bias: bool = False,
) -> Model:
    """A copy of a model with a low-rank adapter on the weight of each layer; only the adapters require gradients.

    Equation: Y = sum_k S_k X (W_k + scale A_k B_k) + b, A_k (i, r), B_k (r, o), B_k = 0 at first.

    Meaning: the structure S_k does not change: stride, dilation, groups and padding on grids, degrees, polynomials and
    attention on graphs. It works for layers of gconv, torch.nn and PyG, converted or not, and for models of them. The
    copy has the same outputs as the model until it is trained. `report()` of the copy lists the layers with adapters,
    and why others have none.

    The adapters are torch parametrizations (`torch.nn.utils.parametrize`): optimisers, state_dict, deepcopy, autocast,
    compilers and `LinearMap`s see W_k + scale A_k B_k as the weight. `merge` adds them to the weights.

    Traps: batch norm still updates its running statistics in train mode. torch cannot pickle parametrized modules: use
    `gconv.save`, or the state_dict. If A_k and B_k have at least as many entries as W_k, the update has full rank. An
    operator whose weight is diag(d_k) P (`separable`) has its adapter on P.

    Args:
        model: any module. It is not changed.
        rank: r, reduced to min(i, o) where that is smaller.
        layers: paths of the layers to adapt, or of modules that contain them; default: all.
        scale: factor of the adapters, e.g. alpha / r of the paper.
        bias: whether the biases of the adapted layers are trained, too.

    Raises:
        TypeError: if model is not a module, or an argument has the wrong type.
        ValueError: if a path is not in the model, a layer has an adapter already, or no layer can be adapted.

    >>> import gconv
    >>> from gconv.operators import conv2d
    >>> net = nn.Sequential(GConv(conv2d(16, 32, 3, stride=2)), nn.ReLU(), GConv(conv2d(32, 32, 3, groups=2)))
    >>> tuned = gconv.adapt(net, rank=2)
    >>> print(tuned.report())
    2 of 3 layers have adapters; 2016 parameters are trained, 9280 frozen.
    0: conv2d(16, 32, 3, stride=2): 864 parameters on weight
    1: ReLU left alone
        an activation, not linear
    2: conv2d(32, 32, 3, groups=2): 1152 parameters on weight
    >>> x = torch.rand(1, 16, 9, 9)
    >>> torch.equal(tuned(x), net(x)), torch.allclose(gconv.merge(tuned)(x), tuned(x))
    (True, True)

    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"adapt takes a torch module, but it was given {shown(model)}.")
    rank = integer(rank, "rank", 1)
    factor = plain(scale, "scale")
    if not isinstance(factor, int | float) or isinstance(factor, bool) or factor == 0:
        raise ValueError(f"scale must be a number other than 0, but it is {shown(scale)}.")
    if not isinstance(bias, bool):
        raise TypeError(f"bias must be True or False, but it is {shown(bias)}.")
    wanted = _read_layers(model, layers)
    twin = copied(model)
    for p in twin.parameters():
        p.requires_grad_(False)
    entries = list(_adapt_layers(twin, rank, float(factor), bias, wanted))
    if not any(entry.parameters for entry in entries):
        reasons = "; ".join(f"{e.path or 'the model'} ({e.layer}): {e.reason}" for e in entries[:8])
        raise ValueError(f"There is nothing to adapt: {reasons or 'the model has no layers'}.")
    numbers = [0, 0]
    for p in twin.parameters():
        numbers[p.requires_grad] += p.numel()
    report = AdapterReport(tuple(entries), numbers[1], numbers[0])
    if not hasattr(type(model), "report") and "report" not in {*twin._modules, *twin._parameters, *twin._buffers}:
        twin.report = report  # type: ignore[assignment]
    return twin


def _read_layers(model: nn.Module, layers: Iterable[str] | None) -> set[str] | None:
    if layers is None:
        return None
    known = dict(model.named_modules())
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise TypeError(f"layers must be a list of paths in the model, such as ['0'], but it is {shown(layers)}.")
    paths = list(layers)
    for path in paths:
        if not isinstance(path, str) or path not in known:
            raise ValueError(f"The model has no layer at {shown(path)}{near(str(path), list(known)) or '.'}")
    return set(paths)


def _adapt_layers(twin: nn.Module, rank: int, scale: float, bias: bool, wanted: set[str] | None) -> Iterator[Adapted]:
    inside: set[int] = set()  # ids of submodules of layers that have been handled
    for path, module in list(twin.named_modules()):
        if id(module) in inside or "parametrizations" in path.split("."):
            continue
        try:
            found = _places(module)
        except LeftAlone as reason:
            if isinstance(module, GConv) or is_layer(module) or parametrize.is_parametrized(module):
                inside.update(map(id, module.modules()))
                yield Adapted(path, _name(module), (), 0, str(reason))
            continue
        inside.update(id(part) for part in module.modules() if id(part) not in found.inner)
        if wanted is not None and not any(path == w or path.startswith(f"{w}.") or not w for w in wanted):
            yield Adapted(path, _name(module), (), 0, "it is not among `layers`")
            continue
        added = 0
        order = {owner: tuple(module.get_submodule(owner)._parameters) for owner, _, _ in found.places}
        for owner, name, layout in found.places:
            part = module.get_submodule(owner)
            adapter = LowRank(part._parameters[name], rank, scale, layout)
            adapter.order = order[owner]
            parametrize.register_parametrization(part, name, adapter)
            added += sum(p.numel() for p in adapter.parameters())
        if bias:
            for name, p in module.named_parameters():
                if name.rpartition(".")[2] == "bias":
                    p.requires_grad_(True)
        yield Adapted(path, _name(module), tuple(f"{o}.{n}" if o else n for o, n, _ in found.places), added)


def attach(module: nn.Module, name: str, rank: int | None, scale: float) -> None:
    """Give one parameter of a layer an adapter; with rank None, a full-rank update.

    Raises:
        ValueError: if the parameter is not a weight that mixes channels.
    """
    try:
        layouts = {n: layout for owner, n, layout in _places(module).places if not owner}
    except LeftAlone as reason:
        raise ValueError(f"{_name(module)} can have no adapter: {reason}.") from None
    if name not in layouts:
        raise ValueError(f"{_name(module)} has no weight {shown(name)} that an adapter could update.")
    weight = module.get_parameter(name)
    adapter = LowRank(weight, max(weight.shape) if rank is None else rank, scale, layouts[name])
    adapter.order = tuple(module._parameters)
    parametrize.register_parametrization(module, name, adapter)


def _name(module: nn.Module) -> str:
    return repr(module.spec) if isinstance(module, GConv) else base_class(module).__name__


@dataclass(frozen=True)
class _Found:
    """The weights of a layer as (submodule, name, layout), and the ids of separate layers inside it."""

    places: list[tuple[str, str, Layout]]
    inner: set[int]


def _places(module: nn.Module) -> _Found:
    """Where the weights of a layer are stored.

    Raises:
        LeftAlone: if it has none, or they are not parameters.
    """
    if isinstance(module, GConv):
        weight = module._parameters.get("weight")
        _refuse_parametrized(module)
        if weight is None:
            raise LeftAlone("nothing to learn: it has no weight")
        mixing = module.spec.mixing
        return _Found([("", "weight", Layout(skip=mixing.taps if isinstance(mixing, Separable) else 0))], set())
    peer, spec = describe(module)
    separate = [getattr(module, key) for key in peer.inner]
    inner = {id(part) for found in separate if isinstance(found, nn.Module) for part in found.modules()}
    if spec.mixing.shape is None:
        raise LeftAlone("nothing to learn: it has no weight")
    for part in module.modules():
        if id(part) not in inner:
            _refuse_parametrized(part)
    named = dict(module.named_parameters())
    flags = {name: p.requires_grad for name, p in named.items()}
    try:
        for p in named.values():
            p.requires_grad_(True)
        with torch.enable_grad():
            W = peer.weights(module)["weight"]
            assert W is not None
            grads = torch.autograd.grad(W.sum(), list(named.values()), allow_unused=True)
    except RuntimeError:  # W does not depend on any parameter
        raise LeftAlone("its weight is not a parameter") from None
    finally:
        for name, p in named.items():
            p.requires_grad_(flags[name])
    read = [name for name, grad in zip(named, grads, strict=True) if grad is not None and named[name].ndim > 1]
    if not read:
        raise LeftAlone("its weight is not a parameter")
    places = []
    for full in read:
        owner, _, name = full.rpartition(".")
        part = module.get_submodule(owner)
        if isinstance(part, nn.ParameterDict):
            raise LeftAlone("Keras reads its weight by itself; its own layer.enable_lora(rank) adapts it")
        if isinstance(part, _ConvNd):
            layout = Layout(part.groups, not isinstance(part, _ConvTransposeNd))
        else:  # a linear layer of torch or PyG holds (o, i)
            layout = Layout(transposed=base_class(part).__name__ == "Linear")
        places.append((owner, name, layout))
    return _Found(places, inner)


def _refuse_parametrized(module: nn.Module) -> None:
    if not parametrize.is_parametrized(module):
        return
    lists: Iterable[nn.Module] = module.parametrizations.children()  # type: ignore[union-attr]
    if any(isinstance(p, LowRank) for chain in lists for p in chain.children()):
        raise ValueError("The model has adapters already: merge(model) folds them into its weights first.")
    raise LeftAlone("its weight is computed by a parametrization: remove that first")


@checked
def merge(model: Model) -> Model:
    """A copy of an adapted model with the adapters added to the weights: plain layers, as fast as before.

    Equation: W_k := W_k + scale A_k B_k.

    Meaning: the same function, up to the rounding of one sum. The names in the state_dict are those of the original
    model. The copy keeps its adapters, outside of the state_dict, for `unmerge`. Frozen parameters stay frozen. Weights
    that several layers shared are separate in the copy.

    Args:
        model: the result of `adapt`, trained or not. It is not changed.

    Raises:
        ValueError: if no layer has an adapter.

    >>> import gconv
    >>> from gconv.operators import cheb
    >>> layer = gconv.adapt(GConv(cheb(8, 8, k=3)), rank=2)
    >>> list(layer.state_dict()), list(merge(layer).state_dict())
    (['bias', 'parametrizations.weight.original', 'parametrizations.weight.0.A', 'parametrizations.weight.0.B'],
     ['weight', 'bias'])
    """
    twin = _copied(model, "merge")
    found = False
    for module in list(twin.modules()):
        for name, adapter in adapters(module).items():
            if not vars(module).get(MERGED):
                _make_class_unique(module)
            found = True
            chain: Any = module.parametrizations[name]  # type: ignore[index]
            # a copy, because other layers may hold the same tensor
            chain.original = nn.Parameter(chain.original.detach().clone(), chain.original.requires_grad)
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            order = {key: number for number, key in enumerate(adapter.order)}
            names = sorted(module._parameters, key=lambda key: order.get(key, len(order)))
            module._parameters = {key: module._parameters[key] for key in names}
            vars(module).setdefault(MERGED, {})[name] = adapter
    if not found:
        raise ValueError("merge takes a model with adapters, as gconv.adapt returns it, but no layer has any.")
    vars(twin).pop("report", None)
    return twin


@checked
def unmerge(model: Model) -> Model:
    """The inverse of `merge`: a copy with separate adapters again, for further training.

    Equation: W_k := W_k - scale A_k B_k, with the A_k and B_k that were merged.

    Meaning: the same function. The weights are those before `merge`, up to rounding, plus any change since.

    Args:
        model: the result of `merge`. It is not changed.

    Raises:
        ValueError: if no layer of the model has been merged.

    >>> import gconv
    >>> from gconv.operators import cheb
    >>> layer = gconv.adapt(GConv(cheb(8, 8, k=3)), rank=2)
    >>> torch.equal(unmerge(merge(layer)).weight, layer.weight)
    True
    """
    twin = _copied(model, "unmerge")
    found = False
    for module in list(twin.modules()):
        for name, adapter in vars(module).pop(MERGED, {}).items():
            found = True
            weight = module._parameters[name]
            assert weight is not None
            adapter.to(weight.device, weight.dtype)
            with torch.no_grad():
                weight.sub_(adapter.difference())
            parametrize.register_parametrization(module, name, adapter)
    if not found:
        raise ValueError("unmerge takes the result of gconv.merge, but no layer of this model was merged.")
    return twin


def _make_class_unique(module: nn.Module) -> None:
    """Give a parametrized module its own class.

    Deep copies share one class, and removing a parametrization deletes a property of that class.
    """
    cls = type(module)
    body = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")}
    module.__class__ = type(cls.__name__, cls.__bases__, body)


def _copied(model: Model, name: str) -> Model:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} takes a torch module, but it was given {shown(model)}.")
    return copy.deepcopy(model)


def adapters(module: nn.Module) -> dict[str, LowRank]:
    """The adapters of one layer, by parameter name.

    >>> from gconv.operators import cheb
    >>> adapters(adapt(GConv(cheb(8, 8, k=3)), rank=2))
    {'weight': LowRank(rank=2, scale=1.0)}
    """
    if not parametrize.is_parametrized(module):
        return {}
    chains: Iterable[tuple[str, nn.Module]] = module.parametrizations.named_children()  # type: ignore[union-attr]
    return {name: p for name, chain in chains for p in chain.children() if isinstance(p, LowRank)}
