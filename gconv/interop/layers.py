"""Classification of modules: a layer of the family, a sequence of layers, or another module. Used by all functions that
take modules.

A class name does not determine what `forward` computes. A module is a layer of the family only if neither its class nor
its instance nor a hook replaces the forward known to gconv; all others are `Other`, with a reason.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.utils.prune as prune
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from gconv.domains import Bipartite, Graph, Grid, read_graph
from gconv.interop.peer import ConvertedState, LeftAlone, Peer, Unweighted, Weights, base_class, with_ones
from gconv.interop.peers import describe, is_pyg, of_keras
from gconv.linear import LinearMap
from gconv.module import GConv
from gconv.spec import NotLinear, OperatorSpec, OutsideFamily


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of the family: a GConv, or a layer of torch.nn or PyG, converted or not.

    Args:
        module: the layer itself.
        spec: its operator.
        peer: how it maps onto a GConv; None for a GConv.
    """

    module: nn.Module
    spec: OperatorSpec
    peer: Peer | None = None

    @property
    def name(self) -> str:
        return self.spec.name if self.peer is None else base_class(self.module).__name__

    @property
    def after(self) -> str | None:
        """A description of what follows the convolution inside the layer; None if nothing does."""
        return None if self.peer is None else self.peer.after(self.module)

    def settle(self, domain: Any) -> tuple[GConv, Any]:
        """A GConv with the weights of the layer, and the domain in a form that GConv accepts."""
        if self.peer is None:
            assert isinstance(self.module, GConv)
            return self.module, domain
        spec, domain = self.peer.settle(self.module, self.spec, domain)
        engine = Unweighted(spec).eval()
        own = getattr(self.module, "gconv", None)
        if isinstance(own, Unweighted):  # it stores the dtype of a converted layer without weights
            engine._like = own._like
        return engine.borrow(self.peer.weights(self.module)), domain

    def at(self, domain: Any, x: Tensor | None = None) -> LinearMap:
        """The layer on a domain as a LinearMap, without its bias.

        Raises:
            NotLinear: if it takes a maximum, or a nonlinear function follows its linear part.
        """
        if self.after:
            raise NotLinear(f"{self.name} is not linear: {self.after}.")
        if self.peer is not None and x is not None:
            x = _as_signal(x, domain)
        gconv, place = self.settle(domain)
        if self.peer is None or not self.peer.affine(self.module):
            return gconv.at(place, x)
        A = gconv.at(place, None if x is None else with_ones(x))
        assert A.W is not None
        i = A.i - 1  # without the channel of ones, which holds biases
        return replace(A, mixing=replace(A.mixing, i=i), W=A.W[..., :i, :], i=i)  # type: ignore[type-var]

    def enter(self, x: Tensor, domain: Any = None) -> EngineCall:
        """The call of a GConv that layer(x, domain) makes."""
        if self.peer is None:
            assert isinstance(self.module, GConv)
            return EngineCall(self.module, x, domain, {})
        if domain is not None:
            gconv, place = self.settle(domain)
            return EngineCall(gconv, with_ones(x) if self.peer.affine(self.module) else x, place, {})
        if not x.is_complex():
            return engine_call(self.module, x)
        asked = engine_call(self.module, x.real)  # complex inputs are not converted, but the map is the same
        return replace(asked, x=asked.x.to(x.dtype))


def _as_signal(x: Tensor, domain: Any) -> Tensor:
    """An image in torch's layout, (c, *grid) or (1, c, *grid), as a signal (n, c); a signal unchanged."""
    if not isinstance(domain, Grid) or not isinstance(x, Tensor) or (x.ndim == 2 and len(x) == domain.size):
        return x
    d = domain.ndim
    if x.ndim == d + 2 and len(x) == 1:
        x = x.squeeze(0)
    return x.flatten(-d).mT if x.ndim == d + 1 and tuple(x.shape[-d:]) == domain.shape else x


@dataclass(frozen=True, eq=False)
class Chain:
    """A sequence of layers: an nn.Sequential or nn.ModuleList with its original forward."""

    module: nn.Module
    parts: tuple[nn.Module, ...]


@dataclass(frozen=True, eq=False)
class Other:
    """Any other module, and the reason why gconv does not know what it computes.

    Args:
        module: the module.
        reason: for messages.
        follows: whether the forward of its class is what runs, so that it can be traced.
    """

    module: nn.Module
    reason: str
    follows: bool = True


def identify(module: nn.Module) -> Layer | Chain | Other:
    """The classification of a module.

    >>> from gconv.operators import cheb
    >>> type(identify(GConv(cheb(2, 2, k=3)))).__name__, identify(nn.Linear(2, 3)).spec
    ('Layer', pointwise(2, 3, ndim=1))
    >>> class Doubled(nn.Linear):
    ...     def forward(self, x):
    ...         return 2 * super().forward(x)
    >>> identify(Doubled(2, 3)).reason
    'a subclass of Linear with code of its own (forward), whose behaviour gconv does not know'
    """
    if isinstance(module, Unweighted):
        return Other(module, "it has no weights of its own: use the converted layer that contains it", False)
    if "forward" in vars(module):
        return Other(module, "its forward was replaced on the instance", False)
    if _hooks(module):
        return Other(module, "a forward hook is registered on it, which may change its result", False)
    if isinstance(module, GConv):
        if type(module).forward is not GConv.forward:
            return Other(module, "a subclass of GConv with a forward of its own")
        return Layer(module, module.spec)
    for container in (nn.Sequential, nn.ModuleList):
        if isinstance(module, container):
            if type(module).forward is container.forward:
                return Chain(module, tuple(module))
            return Other(module, f"a subclass of {container.__name__} with a forward of its own")
    try:
        peer, spec = describe(module)
    except LeftAlone as reason:
        return Other(module, str(reason))
    return Layer(module, spec, peer)


def _hooks(module: nn.Module) -> bool:
    """Whether hooks may change the input or result of a module; hooks that compute its weights are run instead."""
    if module._forward_hooks:
        return True
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm):  # without updating its power iteration
            setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
        elif isinstance(hook, WeightNorm | prune.BasePruningMethod):
            hook(module, None)
        else:
            return True
    return False


def fill(module: nn.Module, peer: Peer, wanted: dict[str, Tensor]) -> None:
    """Set the parameters p of a layer of torch.nn or PyG to give the weights W = J p of a GConv, p = J^T (J J^T)^-1 W.

    Every row of the weight map J copies or adds different parameters, so J J^T is diagonal and equals its row sums.

    Raises:
        LeftAlone: if the layer cannot represent the weights.
    """
    with torch.enable_grad():
        carried = {key: W for key, W in peer.weights(module).items() if W is not None and W.requires_grad}
    parameters = list(module.parameters())

    def put(target: dict[str, Tensor]) -> dict[str, Tensor]:
        """Set p = J^T target, and return J p."""
        if carried:
            outputs = [target.get(key, torch.zeros_like(W)) for key, W in carried.items()]
            found = torch.autograd.grad(
                list(carried.values()), parameters, outputs, allow_unused=True, retain_graph=True
            )
            for p, value in zip(parameters, found, strict=True):
                if value is not None:
                    p.data.copy_(value)
        return {key: W.detach() for key, W in peer.weights(module).items() if W is not None}

    if any(W.shape != carried[key].shape for key, W in wanted.items() if key in carried):
        raise LeftAlone("its parameters have different shapes there")
    times = put({key: torch.ones_like(W) for key, W in carried.items()})
    again = put({key: W / torch.where(times[key] == 0, 1.0, times[key]) for key, W in wanted.items() if key in carried})
    for key, W in wanted.items():
        if not torch.allclose(again.get(key, torch.zeros_like(W)), W, rtol=8 * torch.finfo(W.dtype).eps, atol=0):
            raise LeftAlone(f"its {key} has no place there")


# -- capturing the call of a GConv ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EngineCall:
    """The arguments of a call gconv(x, domain, **edges)."""

    gconv: GConv
    x: Tensor
    domain: Any
    edges: dict[str, Any]

    def graph(self) -> Graph | Bipartite:
        """The domain as a graph, with the data of the edges."""
        edges = {key: value for key, value in self.edges.items() if value is not None}
        if isinstance(self.domain, Bipartite) and not edges:
            return self.domain
        return read_graph(self.domain, self.x.shape[-2], **edges)


class _Captured(Exception):
    """Carries an EngineCall out of a peer's `call`."""

    def __init__(self, call: EngineCall) -> None:
        self.call = call


class _Capturing(Unweighted):
    """Replaces the engine of a layer and raises the captured call instead of running it."""

    def borrow(self, weights: Weights) -> GConv:
        gconv = super().borrow(weights)

        def call(x: Tensor, domain: Any = None, **edges: Any) -> Tensor:
            raise _Captured(EngineCall(gconv, x, domain, edges))

        return SimpleNamespace(forward=call)  # type: ignore[return-value]

    def like(self, spec: OperatorSpec) -> Unweighted:
        return _Capturing(spec).train(self.training)


def _shell(cls: type, peer: Peer) -> type:
    """A subclass of a peer's class with the state of converted layers only."""
    return type(cls.__name__, (ConvertedState, cls), {"peer": peer, "__module__": cls.__module__})


def engine_call(module: nn.Module, *args: Any, **kwargs: Any) -> EngineCall:
    """The call of a GConv that a call of a layer of gconv, torch.nn or PyG makes; nothing is computed.

    Raises:
        OutsideFamily: if the call does not run in gconv; the message says why.

    >>> import torch
    >>> engine_call(nn.Linear(64, 10), torch.zeros(4, 64)).x.shape  # four sites
    torch.Size([64, 4])
    """
    if isinstance(module, GConv):
        bound = inspect.signature(GConv.forward).bind(module, *args, **kwargs).arguments
        edges = {key: value for key, value in bound.items() if key.startswith("edge_")}
        return EngineCall(module, bound["x"], bound.get("domain"), edges)
    name = base_class(module).__name__
    try:
        peer, spec = describe(module)
        shell: Any = object.__new__(_shell(base_class(module), peer))
        shell.__dict__.update(vars(module), gconv=_Capturing(spec).train(module.training))
        shell.__dict__["_modules"] = dict(module._modules)
        for key in module.parametrizations if parametrize.is_parametrized(module) else ():  # type: ignore[union-attr]
            shell.__dict__[key] = getattr(module, key)
        answer = peer.call(shell, *args, **kwargs)
    except _Captured as captured:
        return captured.call
    except LeftAlone as reason:
        raise OutsideFamily(f"{name} does not run in gconv: {reason}.") from None
    del answer
    given = [tuple(a.shape) for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    shape = f"; its input has shape {given[0]}" if given else ""
    library = "PyG" if any(map(is_pyg, type(module).__mro__)) else "Keras" if of_keras(module) else "torch"
    raise OutsideFamily(f"This call of {name} runs in {library}'s own forward, not in gconv{shape}.")
