"""Which classes gconv knows, and why a layer is left alone."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from gconv.caches import function
from gconv.interop import torch_nn
from gconv.interop.peer import LeftAlone, Peer, base_class, original_class
from gconv.spec import OperatorSpec, OutsideFamily

PYG = "torch_geometric"
LIBRARIES = {  # their modules here, which are imported when a layer of theirs is met
    PYG: "gconv.interop.pyg",
    "keras": "gconv.interop.keras_layers",
    "transformers": "gconv.interop.transformers_layers",
}
HARMLESS = {"__init__", "__repr__", "extra_repr", "reset_parameters"}  # methods that a forward pass does not meet


def is_pyg(cls: type) -> bool:
    """Whether a class comes from PyG, without importing it."""
    return cls.__module__.split(".")[0] == PYG


def known(cls: type) -> Peer | None:
    """The peer of exactly this class."""
    found: Peer | None = library(cls).PEERS.get(cls)
    return found


def library(cls: type) -> ModuleType:
    """The module here that describes the layers of the library that a class comes from; torch.nn's for all others."""
    name = LIBRARIES.get(cls.__module__.split(".")[0])
    try:
        return torch_nn if name is None else import_module(name)
    except ImportError:  # another package of this name
        return torch_nn


def parts(module: nn.Module) -> dict[str, nn.Module]:
    """The modules inside a module, by name."""
    keras = next((cls for cls in type(module).__mro__ if cls.__module__.split(".")[0] == "keras"), None)
    if keras is not None:
        found: dict[str, nn.Module] = library(keras).parts(module)
        return found
    return {key: child for key, child in module._modules.items() if child is not None}


def find(cls: type) -> Peer:
    """The peer of a class, or of the one that it derives from without changing how it runs.

    Raises:
        LeftAlone: if there is none.
    """
    peer = known(cls)
    if peer is not None:
        return peer
    base = next((base for base in cls.__mro__[1:] if known(base) is not None), None)
    if base is None:
        raise LeftAlone(why_outside(cls))
    own = set().union(*(_methods(k) for k in cls.__mro__[: cls.__mro__.index(base)])) - HARMLESS
    if own:
        raise LeftAlone(
            f"a subclass of {base.__name__} with code of its own ({', '.join(sorted(own))}), "
            "which gconv cannot answer for"
        )
    found = known(base)
    assert found is not None
    return found


def _methods(cls: type) -> set[str]:
    """What a class itself defines, without what PyG's MessagePassing writes into its classes."""
    names = {name for name, value in vars(cls).items() if callable(value)}
    written = {name.removeprefix("_jinja_") for name in names if name.startswith("_jinja_")}
    if not written:
        return names
    return (
        {name for name in names if not name.startswith(("_jinja_", "_orig_"))} - written - {"collect", "edge_collect"}
    )


def describe(layer: nn.Module) -> tuple[Peer, OperatorSpec]:
    """How a layer maps onto a GConv.

    Raises:
        LeftAlone: if it does not, exactly; the message is the reason.
    """
    if any(is_lazy(p) for p in layer.parameters()):
        raise LeftAlone("its parameters are not initialised yet: run the model once, then convert it")
    peer = find(base_class(layer))
    try:
        spec = peer.spec(layer)
    except OutsideFamily as error:
        raise LeftAlone(str(error).rstrip(".")) from None
    except ValueError as error:
        raise LeftAlone(f"gconv has no such operator: {str(error).rstrip('.')}") from None
    reason = obstacle(layer, peer.inner)
    if reason:
        raise LeftAlone(reason)
    own = vars(layer)
    replaced = {name for name in METHODS if name in own and not _written(type(layer), name, own[name])}
    if replaced:
        raise LeftAlone(f"{' and '.join(sorted(replaced))} of this very layer was replaced")
    return peer, spec


METHODS = ("forward", "message", "aggregate", "update", "propagate")


def _written(cls: type, name: str, method: Any) -> bool:
    """Whether PyG itself put a method of a class into a layer: it chooses between two, one compiled, one that hooks."""
    inner = getattr(method, "__func__", None)
    return inner is not None and any(inner is getattr(cls, f"_{kind}_{name}", None) for kind in ("orig", "jinja"))


READ = {nn.Linear, nn.ModuleList, nn.Sequential, nn.Identity}  # parts of layers whose weights are read
NOT_READ = {"gconv", "aggr_module", "parametrizations", "_torch_params"}


@function("classes of readable parts")
def _readable(cls: type) -> bool:
    """Whether a part is what its name says, so that its weights tell what it computes."""
    if cls.__name__ == f"Parametrized{cls.__mro__[1].__name__}":
        cls = cls.__mro__[1]
    cls = original_class(cls)
    if is_pyg(cls):
        from gconv.interop import pyg

        return cls in pyg.READ
    return cls in READ or cls.__module__ == "torch.nn.modules.activation"


def obstacle(layer: nn.Module, inner: tuple[str, ...] = ()) -> str | None:
    """Why the weights of a layer's parts do not say what they compute: hooks, or other modules in their place."""
    parts = list(layer._modules.items())
    for key, part in parts:  # which grows
        if part is None or key in inner or key in NOT_READ:
            continue
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            return f"a hook sits on its part {key!r}, which gconv reads but does not call"
        if not _readable(type(part)):
            return f"its part {key!r} is a {type(part).__name__}, whose weights gconv cannot read"
        parts += part._modules.items()
    return None


KINDS = {
    "activation": "an activation, not linear",
    "dropout": "drops numbers at random, and does nothing in eval",
    "batchnorm": "normalises by statistics of a batch",
    "normalization": "normalises by statistics of its input",
    "instancenorm": "normalises by statistics of its input",
    "rnn": "recurrent, not one linear map",
    "sparse": "a table that integers index, not a map of signals",
    "loss": "a loss",
    "flatten": "only gives its input another shape",
    "transformer": "attention between channels of tokens, not a layer of one structure and one mixing",
}


BY_NAME = {
    "Bilinear": "a product of two inputs, linear in neither alone",
    "Identity": "returns its input",
    "MultiheadAttention": "attention over all tokens with projections inside; gconv.operators.transformer on the "
    "complete graph is its like",
    **{f"LPPool{d}d": "a mean of powers over its window, not linear in x and no maximum either" for d in (1, 2, 3)},
    **{f"FractionalMaxPool{d}d": "its windows are drawn at random" for d in (2, 3)},
    **{f"MaxUnpool{d}d": "a second input, the places of the maxima, says where its values go" for d in (1, 2, 3)},
}
OPAQUE = {nn.MultiheadAttention}  # layers that read the weights of their children without calling them


def why_outside(cls: type) -> str:
    """The reason, in words, why gconv does not know a class."""
    if getattr(nn, cls.__name__, None) is cls and cls.__name__ in BY_NAME:
        return BY_NAME[cls.__name__]
    why = getattr(library(cls), "why_outside", None)
    if why is not None:
        reason: str = why(cls)
        return reason
    kind = cls.__module__.rsplit(".", 1)[-1] if cls.__module__.startswith("torch.nn.") else ""
    return KINDS.get(kind, "no layer that gconv knows")


def is_layer(module: nn.Module) -> bool:
    """Whether a report speaks of a module: it computes something itself, rather than only hold others."""
    if any(map(is_pyg, type(module).__mro__)):
        from gconv.interop import pyg

        if pyg.is_layer(module):
            return True
    return not parts(module) or type(module) in OPAQUE
