"""Whole models: a copy in which every layer inside the family runs through gconv."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from gconv.arguments import checked, kind_of, shown
from gconv.interop.converted import NAMES, Converted, convertible, renew, undo
from gconv.interop.peer import LeftAlone, Unweighted, base_class
from gconv.interop.peers import OPAQUE, describe, is_layer, known, of_keras, parts
from gconv.interop.repeated import Repeated
from gconv.interop.report import Entry, Report
from gconv.spec import OperatorSpec

Model = TypeVar("Model", bound=nn.Module)


@checked
def convert(model: Model, *, constant_inputs: bool = False) -> Model:
    """A copy of a model in which every layer of torch, PyG or Keras inside the family runs through gconv.

    Equation: each converted layer computes Y = sum_k S_k X W_k + b with its own S_k and W_k.

    Meaning: values and gradients are the same, computed by gconv. The copy is a model of the same class, and the class
    of a converted layer derives from its original class, with the same parameters under the same names, so state_dicts,
    hooks, parametrizations and pruning continue to work. The class also equals its original: `type(layer) == nn.Linear`
    is true (`type(layer) is nn.Linear` is not), and torch.ao.quantization replaces converted layers like the originals.
    `layer.gconv` is the GConv that runs it, `spec` its operator, `at(domain)` its linear map, `plan(x, domain)` its
    plan. `report()` of the copy lists for each layer its operator and the conventions that are kept, or the reason why
    it was left unchanged; `gconv.interop.preview` gives the report without converting.

    Traps: the parameters of the copy are new tensors with the same values, so create optimisers after converting.
    Shared layers stay shared. Dropout inside a layer (attention) draws different random numbers than the original.
    Edge weights that make a degree negative raise an error, where PyG returns NaN.

    Converted layers are compiled in one graph and exported without a previous call, like layers of gconv: see GConv.
    torch.jit.script is not supported; use `restore` first.

    Calls that a description does not cover run in the original forward. For layers on grids these are: calls under
    torch.jit.trace and the ONNX exporter built on it, whose programs then hold for other sizes as before; tensors of
    classes with a `__torch_function__` or `__torch_dispatch__` of their own. For PyG these are: explainers and hooks on
    messages; layers whose submodules were replaced or have hooks; adjacencies of torch_sparse, in CSC layout or with
    gradients; edge weights with another dtype than x; labels out of range; attention weights of pairs; sparse signals
    that require gradients or have more than 2^26 entries; several signals in one call of an attention layer; dropout in
    ARMAConv. If values cannot be read (compilers, exporters): also readouts by `index` or `ptr`, adjacencies whose
    values or loops matter, dense attention without loops, and SuperGATConv in training.

    Args:
        model: any module, or a single layer. It is not changed.
        constant_inputs: whether graph layers treat a signal (n, c) that is passed again unchanged as a
            `gconv.constant`, whose sparse form and S x are cached. Intended for training on one graph without dropout
            before the first layer. A signal is the same if it is the same tensor object with the same storage and
            version; new, modified, or differentiable tensors are not cached. Writes that torch does not track, such as
            `x.data.mul_(2)` or writes through `x.numpy()`, are detected only by comparing values in each call: all
            values of signals up to 16384 numbers, and some rows of larger ones.

    Shapes: as before for every layer.

    Raises:
        TypeError: if it is not a module.

    >>> import torch
    >>> from torch import nn
    >>> cnn = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
    >>> twin = convert(cnn)
    >>> x = torch.rand(2, 3, 6, 6)
    >>> torch.allclose(twin(x), cnn(x), atol=1e-6)
    True
    >>> print(twin.report())
    2 of 3 layers run through gconv.
    0: Conv2d -> conv2d(3, 8, 3, padding=1)
    1: ReLU left alone
        an activation, not linear
    2: AvgPool2d -> avg_pool2d(2, stride=2)
    """
    if not isinstance(model, nn.Module):
        raise _refused(model)
    if not isinstance(constant_inputs, bool):
        raise TypeError(f"constant_inputs must be True or False, but it is {shown(constant_inputs)}.")
    twin = copied(model)
    report, found = _survey(twin)
    for layer, spec in found:
        _swap(layer, spec)
        vars(layer)["_repeated"] = Repeated() if constant_inputs else None
    if isinstance(getattr(twin, "report", report), Report):
        twin.report = report  # type: ignore[assignment]
    return twin


def _refused(model: Any) -> TypeError:
    name = type(model).__name__
    if any(cls.__module__.split(".")[0] == "keras" for cls in type(model).__mro__):
        return TypeError(
            f"convert takes layers and models of Keras that run on torch, but this {name} runs on another backend. "
            "Set the environment variable KERAS_BACKEND=torch before Keras is imported."
        )
    return TypeError(f"convert takes a torch module, but {kind_of(model)} was given.")


def copied(model: Model) -> Model:
    """A deep copy that also supports weights computed by hooks (weight_norm, pruning), and layers of Keras.

    copy.deepcopy supports neither: see `gconv.interop.keras_copies`.
    """
    derived = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf]
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in derived}  # recomputed by the hooks
    tensors: dict[int, Tensor] = {}
    for part, library in outermost(model):
        if id(part) not in memo:
            memo[id(part)] = library.duplicate(part, tensors)
    return copy.deepcopy(model, memo)


def outermost(module: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """The layers and models of Keras that no other contains, with the module that copies them."""
    library = of_keras(module)
    if library is not None:
        yield module, library
        return
    for child in module.children():
        yield from outermost(child)


@checked
def preview(model: nn.Module) -> Report:
    """The report of `convert` without converting; also for models that define a `report` attribute themselves.

    >>> preview(nn.Sequential(nn.Linear(3, 2), nn.Tanh())).converted[0].spec
    pointwise(3, 2, ndim=1)
    """
    return _survey(model)[0]


def _survey(model: nn.Module) -> tuple[Report, list[tuple[nn.Module, OperatorSpec]]]:
    """The report, and the layers to convert."""
    entries: list[Entry] = []
    found: list[tuple[nn.Module, OperatorSpec]] = []
    _walk(model, "", {}, entries, found)
    return Report(tuple(entries)), found


def _walk(
    module: nn.Module,
    path: str,
    seen: dict[nn.Module, str],
    entries: list[Entry],
    found: list[tuple[nn.Module, OperatorSpec]],
) -> None:
    if module in seen:
        first = next((entry for entry in entries if entry.path == seen[module]), None)
        if first is not None:
            entries.append(replace(first, path=path, notes=(f"the layer at {seen[module]!r} again", *first.notes)))
        return
    seen[module] = path
    name = base_class(module).__name__
    inside = {key: part for key, part in parts(module).items() if key != "aggr_module"}
    try:
        peer, spec = describe(module)
        own = [key for key in ("gconv", *NAMES) if hasattr(module, key) and not isinstance(module, Converted)]
        if own:
            raise LeftAlone(f"it already has an attribute {own[0]!r}, which converted layers define")
        found.append((module, spec))
        entries.append(Entry(path, name, spec, tuple(peer.notes(module))))
        inside = {key: getattr(module, key) for key in peer.inner if isinstance(getattr(module, key), nn.Module)}
    except LeftAlone as reason:
        if is_layer(module) or any(known(cls) is not None for cls in type(module).__mro__):
            entries.append(Entry(path, name, None, (str(reason),)))
        inside = {} if base_class(module) in OPAQUE else inside
    for key, part in inside.items():
        _walk(part, f"{path}.{key}" if path else key, seen, entries, found)


def _swap(layer: nn.Module, spec: OperatorSpec) -> None:
    """Change the class of a layer to its converted class."""
    if isinstance(layer, Converted):
        renew(layer)
        return
    cls = type(layer)
    if parametrize.is_parametrized(layer):  # torch created this class for this layer: convert its base class
        body = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        layer.__class__ = type(cls.__name__, (convertible(cls.__mro__[1]),), body)
    else:
        layer.__class__ = convertible(cls)
    vars(layer)["gconv"] = Unweighted(spec).train(layer.training)


@checked
def restore(layer: Model) -> Model:
    """A copy of a converted model or layer with its original classes.

    >>> from torch import nn
    >>> type(restore(convert(nn.Conv1d(2, 3, 3)))) is nn.Conv1d
    True
    """
    twin = copied(layer)
    for module in twin.modules():
        if isinstance(module, Converted):
            undo(module)
    vars(twin).pop("report", None)
    return twin
