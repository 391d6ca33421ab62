"""The layers of a model, replaced by layers that exchange halos."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from gconv.blocks import Shortcut
from gconv.domains import Graph
from gconv.interop.layers import Other, identify
from gconv.interop.peer import base_class
from gconv.interop.peers import known
from gconv.module import GConv
from gconv.parallel.layers import Layer, Whole, on_part
from gconv.parallel.state import State
from gconv.parallel.statistics import BatchNorm, Norm, why_refused
from gconv.spec import OutsideFamily

_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, Shortcut)
_SITEWISE = (nn.Identity, nn.Dropout)
_MIXING = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention)


class Replacing:
    """Replaces the layers of a model. A module that occurs in several places has one replacement."""

    def __init__(self, model: nn.Module, state: State) -> None:
        self.state, self.graph = state, isinstance(state.partition.domain, Graph)
        self.done: dict[int, tuple[nn.Module, nn.Module]] = {}  # by id: the module, so that the id stays its own
        self.owners: dict[int, set[int]] = {}  # by id of a parameter: the ids of the modules that hold it
        for module in model.modules():
            for p in module.parameters(recurse=False):
                self.owners.setdefault(id(p), set()).add(id(module))

    def of(self, module: nn.Module, name: str = "") -> nn.Module:
        """The replacement of a module, or the module with replaced children. Raises: TypeError."""
        if id(module) not in self.done:
            self.done[id(module)] = module, self._new(module, name)
        return self.done[id(module)][1]

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """The modules that were replaced, with their replacements; those that became a GConv lose their own weights."""
        pairs = [pair for pair in self.done.values() if pair[0] is not pair[1]]
        for module, new in pairs:
            if isinstance(new, Layer) and new.layer is not module:
                module.to("meta")
        return pairs

    def _new(self, module: nn.Module, name: str) -> nn.Module:
        kind = _known_class(module)
        if isinstance(module, GConv):
            found = identify(module)
            self._refuse(module, name, found.reason if isinstance(found, Other) else _hooked(module))
            return self._instead(module, on_part(module, name, self.state))
        if isinstance(module, BatchNorm):
            self._refuse(module, name, why_refused(module) or _hooked(module))
            return self._instead(module, Norm(module, self.state))
        if isinstance(module, _SITEWISE):
            return module
        if kind.__module__ == "torch.nn.modules.activation" and not isinstance(module, _MIXING):
            return module
        if isinstance(module, nn.LayerNorm) and self.graph and len(module.normalized_shape) == 1:
            return module
        if isinstance(module, nn.Linear):
            one_axis = not self.graph and self.state.partition.domain.ndim == 1  # type: ignore[union-attr]
            return Whole(module, name, self.state) if one_axis else module
        if isinstance(module, (nn.Flatten, nn.Unflatten, *_MIXING)):
            return Whole(module, name, self.state)
        if kind in _CONTAINERS:
            for key, child in module._modules.items():
                if child is not None:
                    module._modules[key] = self.of(child, f"{name}.{key}" if name else key)
            return module
        self._refuse(module, name, self._lost(module))
        try:
            return self._instead(module, on_part(GConv.from_torch(module), name, self.state))
        except OutsideFamily as error:
            self._refuse(module, name, str(error).rstrip("."))
            raise

    def _instead(self, module: nn.Module, new: nn.Module) -> nn.Module:
        """The replacement, which calls only `forward` of the module: a call of the module itself is an error."""
        module.register_forward_pre_hook(refuse_call)
        return new

    def _refuse(self, module: nn.Module, name: str, why: str | None) -> None:
        if why is not None:
            place = f" ({name})" if name else ""
            raise TypeError(f"{type(module).__name__}{place} cannot be distributed: {why}.") from None

    def _lost(self, module: nn.Module) -> str | None:
        """What a copy of a layer as a GConv would lose; None if nothing."""
        if isinstance(module, (nn.Fold, nn.Unfold)):
            return "its patches are not rows of images"
        if any(map(parametrize.is_parametrized, module.modules())):
            return "its weight is computed by a parametrization, whose parameters a GConv would not have"
        if any(len(self.owners[id(p)]) > 1 for p in module.parameters()):
            return "it shares a parameter with another layer, and a GConv would have its own: use GConv layers"
        return _hooked(module)


def refuse_call(module: nn.Module, arguments: Any) -> None:
    """A hook of modules that were replaced. Raises: TypeError."""
    raise TypeError(
        f"The distributed model calls a {type(module).__name__} that was replaced: a list, dict or function holds it "
        "where replacements are not seen; keep layers in attributes, nn.ModuleList or nn.ModuleDict."
    )


def _known_class(module: nn.Module) -> type:
    """The first class of a module whose forward is known: nn.Module for classes that only derive from that."""
    libraries = "torch", "torch_geometric", "gconv", "keras"
    return next(cls for cls in base_class(module).__mro__ if cls.__module__.split(".")[0] in libraries or known(cls))


def _hooked(module: nn.Module) -> str | None:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return "a hook is registered on it, which would not run" if any(hooks) else None
