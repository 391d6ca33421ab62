"""A piecewise linear network at one input, exactly: one linear map and an offset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gconv.analysis.calls import Model, call, check_model, undisturbed
from gconv.analysis.recording import Recorder
from gconv.arguments import checked, kind_of, shown
from gconv.domains import Grid
from gconv.interop.layers import Layer, engine_call, identify
from gconv.interop.peer import with_ones
from gconv.linear import LinearMap, Map, ProgramMap
from gconv.spec import NotLinear


class Affine(NamedTuple):
    """A piecewise linear network around an input: `map @ x + offset`.

    Args:
        map: the linear map; see `gconv.linear.ProgramMap` for the supported shapes.
        offset: of the shape of the network's result.

    >>> found = affine(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()).eval(), torch.ones(1, 3))
    >>> isinstance(found, Affine), found.map.shape, found.offset.shape
    (True, (4, 3), torch.Size([1, 4]))
    """

    map: Map
    offset: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """map @ x + offset, in the shapes of the network."""
        return (self.map @ x).reshape(self.offset.shape) + self.offset

    def row(self, *index: int) -> Tensor:
        """The row of the map for entry `index` of the result, in the shape of x.

        Meaning: `row * x` is the contribution of each entry of x to the result, which is
        (row * x).sum() + offset[index].

        Raises:
            TypeError: if `index` is not one integer per axis of the result.
            IndexError: if the result has no such entry.
        """
        if not all(isinstance(n, int) for n in index) or len(index) != self.offset.ndim:
            raise TypeError(
                f"row takes the {self.offset.ndim} indices of one entry of the result, whose shape is "
                f"{tuple(self.offset.shape)}, but {shown(index)} was given."
            )
        if any(not -size <= n < size for n, size in zip(index, self.offset.shape, strict=True)):
            raise IndexError(f"The result has shape {tuple(self.offset.shape)}, so it has no entry {shown(index)}.")
        one = torch.zeros_like(self.offset)
        one[index] = 1
        A = self.map.T
        assert isinstance(A, ProgramMap)
        return A.program.transpose(one)


@checked
def affine(model: Model, x: Tensor, domain: Any = None, *, freeze_attention: bool = False) -> Affine:
    """A piecewise linear network at one input, exactly, as one linear map and an offset.

    Equation: model(x + d) = map @ (x + d) + offset for every d such that x + d is in the activation region of x: no
    activation changes sign, and no maximum changes position.

    Meaning: a network of convolutions, ReLU, max pooling, batch norm in eval mode, sums and concatenations is piecewise
    linear. The map is that of the region that contains x: its rows are the gradients of the outputs, and
    `row(0, c) * x` attributes logit c to the entries of x completely: (row * x).sum() + offset = logit. The map
    supports what a `gconv.LinearMap` does (A @ v, A.T, norm, singular values), except access to its structure.

    Traps: at a kink (ReLU at 0, equal maxima) the region is the one that autograd differentiates. The map refers to the
    model's weights; recompute it after they change. `detach` inside a model has no effect, since the equation is about
    values, not gradients. With frozen attention, it holds for the model with the attention coefficients at x.

    Cost: two forward passes; a product costs one forward pass, a product with the transpose one forward and one
    backward pass. The map stores one byte per activation (masks) and 8 bytes per maximum, less than the activations.

    Args:
        model: a layer, a torch module or any function of x that computes with torch, in eval mode: layers of torch.nn,
            PyG and gconv, converted or not. It is not changed.
        x: its input, (b, c, *grid) or (n, c); a batch is treated as one input.
        domain: the graph, for models on graphs.
        freeze_attention: whether attention layers (GAT, ...) are frozen at their coefficients for x.

    Returns:
        Affine(map, offset): `offset` has the shape of the result; `map` takes tensors of the shape of x, or signals
        (*b, n, i) with i the last axis of x and n all others.

    Raises:
        NotLinear: if a layer is not piecewise linear (GELU, sigmoid, softmax, layer norm, attention that is not
            frozen, batch norm and dropout in training mode); the message names it.
        TypeError: if model is not callable, x is not a real tensor, or the model returns several tensors or complex
            numbers.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
    >>> x = torch.rand(1, 1, 8, 8)
    >>> A, offset = affine(net, x)
    >>> torch.allclose(A @ x + offset, net(x), atol=1e-5)
    True
    >>> row = affine(net, x).row(0, 1)  # of logit 1
    >>> row.shape, torch.allclose((row * x).sum() + offset[0, 1], net(x)[0, 1], atol=1e-5)
    (torch.Size([1, 1, 8, 8]), True)

    Source: Montufar, Pascanu, Cho and Bengio, On the Number of Linear Regions of Deep Neural Networks, NeurIPS 2014;
    rows as attributions: Shrikumar, Greenside, Shcherbina and Kundaje, Not Just a Black Box, 2016.
    """
    check_model(model, "affine")
    if not isinstance(x, Tensor) or not x.ndim or not x.is_floating_point():
        given = f"one of {x.dtype} and shape {tuple(x.shape)}" if isinstance(x, Tensor) else kind_of(x)
        raise TypeError(f"affine takes the model's input x, a tensor of real numbers, but {given} was given.")
    if not isinstance(freeze_attention, bool):
        raise TypeError(f"freeze_attention must be True or False, but it is {shown(freeze_attention)}.")
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    with torch.inference_mode(False), torch.no_grad(), undisturbed(model), ExitStack() as stack:
        x = x.detach().clone()
        frozen = [
            stack.enter_context(_Frozen(name, found).installed())
            for name, found in ((name, identify(module)) for name, module in modules.items())
            if freeze_attention and isinstance(found, Layer) and found.spec.structure.kind == "adaptive"
        ]
        y = call(model, x, domain)  # unrecorded: fills the caches of layers and graphs
        if y.is_complex():
            raise TypeError(
                f"affine takes a model that returns real numbers, but this one returns {y.dtype}; "
                "torch.view_as_real(y) converts the result."
            )
        for layer in frozen:
            layer.calls, layer.replayed = iter([*layer.calls]), True
        with Recorder(x, {id(module): name for name, module in modules.items()}) as recorder:
            made = torch.func.functionalize(lambda x: call(model, x, domain).clone())(x)
        A = ProgramMap(recorder.program(x, made))
        return Affine(A, y - A.program.run(x))


@dataclass(eq=False)
class _Frozen:
    """An attention layer whose maps are recorded in a first pass and replayed in a second one.

    Args:
        name: of the layer, for messages.
        layer: the layer.
        calls: the map and bias of each call.
        replayed: whether this is the second pass.
    """

    name: str
    layer: Layer
    calls: Any = field(default_factory=list)
    replayed: bool = False

    @contextmanager
    def installed(self) -> Iterator[_Frozen]:
        """Redirect calls of the layer to `self.forward` within this context."""
        module = self.layer.module
        original = module.forward
        module.__dict__["forward"] = lambda *args, **kwargs: self.forward(original, *args, **kwargs)
        try:
            yield self
        finally:
            del module.__dict__["forward"]

    def forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.replayed:
            A, bias = next(self.calls)
            return A @ self._signal(args[0] if args else kwargs["x"]) + bias
        y = original(*args, **kwargs)
        kept = vars(self.layer.module).pop("forward")  # `identify` rejects modules with an instance forward
        try:
            A, x = self._map(*args, **kwargs)
        except (ValueError, TypeError) as reason:
            raise NotLinear(f"The attention of layer {self.name!r} cannot be frozen: {reason}") from None
        finally:
            vars(self.layer.module)["forward"] = kept
        self.calls.append((A, y - A @ x))
        return y

    def _signal(self, x: Tensor) -> Tensor:
        peer = self.layer.peer
        return with_ones(x) if peer is not None and peer.affine(self.layer.module) else x

    def _map(self, *args: Any, **kwargs: Any) -> tuple[LinearMap, Tensor]:
        """The map of a call, and its signal."""
        module, found = self.layer.module, self.layer
        if found.after:
            raise NotLinear(f"{found.after}.")
        asked = engine_call(module, *args, **kwargs)
        if not isinstance(asked.x, Tensor):
            raise NotLinear("it is called with a pair of signals.")
        place = asked.domain if isinstance(asked.domain, Grid) else asked.graph()
        return asked.gconv.at(place, asked.x), asked.x
