"""Modules as data: layers with their arguments or specs, and the modules that such a description stands for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gconv.adapters import adapters, attach
from gconv.arguments import shown
from gconv.blocks import Shortcut
from gconv.caches import function
from gconv.errors import InputError, first_line
from gconv.interop.convert import convert
from gconv.interop.converted import Converted
from gconv.interop.peer import base_class
from gconv.module import GConv
from gconv.spec import OperatorSpec

Node = dict[str, Any]

CONTAINERS: dict[str, type[nn.Module]] = {
    "Sequential": nn.Sequential,
    "ModuleList": nn.ModuleList,
    "ModuleDict": nn.ModuleDict,
}
DIMS = "1d", "2d", "3d"
LAYERS: dict[str, type[nn.Module]] = {
    name: getattr(nn, name)
    for name in [
        *(f"{kind}{d}" for d in DIMS for kind in ("Conv", "ConvTranspose", "BatchNorm", "InstanceNorm", "Dropout")),
        *(f"{kind}{d}" for d in DIMS for kind in ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool")),
        *(f"{kind}Pad{d}" for d in DIMS for kind in ("Zero", "Constant", "Reflection", "Replication", "Circular")),
        *("Linear", "Embedding", "GroupNorm", "LayerNorm", "RMSNorm", "Dropout", "Identity", "Flatten", "Unflatten"),
        *("Upsample", "PixelShuffle", "PixelUnshuffle", "Unfold", "Fold"),
        *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Tanh", "Sigmoid"),
        *("Hardswish", "Hardsigmoid", "Hardtanh", "Softplus", "Softsign", "Softmax", "LogSoftmax"),
    ]
} | {"Shortcut": Shortcut}
PARTS = {"parametrizations"}  # names of submodules that are part of a layer
IGNORED = {"inplace", "p", "momentum"}  # arguments that do not change the output of a trained network in eval mode


@function("parameters of constructors")
def _arguments(name: str) -> dict[str, Any]:
    """The constructor arguments of a layer's class that may be stored, and their defaults."""
    left_out = ("device", "dtype", "body", "shortcut", "args", "kwargs")
    given = inspect.signature(LAYERS[name]).parameters
    return {n: p.default for n, p in given.items() if n not in left_out and not n.startswith("_")}


def describe_module(module: nn.Module) -> Node:
    """A description of a module for JSON: layers with their arguments or specs, and their children.

    >>> from gconv.operators import cheb
    >>> describe_module(nn.Sequential(GConv(cheb(2, 3, k=4))))["children"]["0"]["operator"]["k"]
    4
    """
    return _describe(module, "", {})


def _describe(module: nn.Module, path: str, seen: dict[int, str]) -> Node:
    if id(module) in seen:
        return {"kind": "same", "path": seen[id(module)]}
    seen[id(module)] = path
    cls = base_class(module)
    node: Node = {"kind": cls.__name__, "training": module.training}
    parts = {key: child for key, child in module._modules.items() if key not in PARTS}
    if cls is GConv:
        assert isinstance(module, GConv)
        node |= {"operator": module.spec.to_dict(), "dtype": str(module._like.dtype).removeprefix("torch.")}
        parts = {}
    elif LAYERS.get(cls.__name__) is cls:
        # without defaults, so that a file can be read by versions of torch that lack a newer argument
        given = {name: (_read_argument(module, name), default) for name, default in _arguments(cls.__name__).items()}
        node["arguments"] = {name: value for name, (value, default) in given.items() if value != default}
        node["converted"] = isinstance(module, Converted)
    elif CONTAINERS.get(cls.__name__) is not cls:
        node["kind"] = "other"
        node["class"] = f"{cls.__module__}.{cls.__qualname__}"
    found = adapters(module)
    if found:
        node["adapters"] = {name: {"rank": a.rank, "scale": a.scale} for name, a in found.items()}
    if parametrize.is_parametrized(module):
        chains: Any = module.parametrizations
        if len(found) < len(chains) or any(len(chain) > 1 for chain in chains.values()):
            node["kind"], node["class"] = "other", f"a parametrized {cls.__name__}"
    inside = {
        key: None if child is None else _describe(child, f"{path}.{key}" if path else key, seen)
        for key, child in parts.items()
    }
    return node | ({"children": inside} if inside else {})


def _read_argument(module: nn.Module, name: str) -> Any:
    value = getattr(module, name, None)
    if name == "bias" and (value is None or isinstance(value, Tensor)):  # the argument says whether it exists
        return value is not None
    if name == "num_parameters":
        return module.get_parameter("weight").numel()
    return _without_arrays(value)


def _without_arrays(value: Any) -> Any:
    """Numbers of numpy and torch as Python's numbers, and tuples as lists."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_without_arrays(part) for part in value] if isinstance(value, tuple | list) else value


def build(node: Any, path: str, made: dict[str, nn.Module]) -> nn.Module:
    """Create a module on the meta device from its description. Raises: InputError."""
    place = f"its layer {shown(path)}" if path else "its model"
    if not isinstance(node, dict) or not isinstance(node.get("kind"), str):
        raise InputError(f"the description of {place} cannot be read.")
    kind, children = node["kind"], node.get("children", {})
    if kind == "same":
        if node.get("path") not in made:
            raise InputError(f"{place} refers to a layer that does not exist.")
        return made[node["path"]]
    if kind == "other":
        raise InputError(
            f"{place} is {shown(node.get('class'))}, which cannot be created from a file: create the model and pass it "
            "as into=."
        )
    if not isinstance(children, dict) or not all(isinstance(key, str) and key and "." not in key for key in children):
        raise InputError(f"the description of {place} cannot be read.")
    parts = {}
    for key, child in children.items():
        if child is not None:
            parts[key] = build(child, f"{path}.{key}" if path else key, made)
    try:
        module = _make(node, kind, parts)
        _attach_adapters(module, node.get("adapters", {}))
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise InputError(f"{place} cannot be created: {first_line(error)}.") from None
    made[path] = module
    return module


def _make(node: Node, kind: str, parts: dict[str, nn.Module]) -> nn.Module:
    if kind == "GConv":
        layer = GConv(OperatorSpec.from_dict(node["operator"]), device="meta")
        dtype = (
            getattr(torch, node["dtype"]) if node["dtype"] in ("float64", "float32", "float16", "bfloat16") else None
        )
        layer._like = torch.empty(0, dtype=dtype)
        return layer
    if kind in CONTAINERS:
        module = CONTAINERS[kind]()
        for key, part in parts.items():
            module.add_module(key, part)
        return module
    if kind not in LAYERS:
        raise ValueError(f"gconv.load does not know layers of the kind {shown(kind)}")
    given = {key: _argument(value) for key, value in node["arguments"].items()}
    unknown = [key for key in given if key not in _arguments(kind)]
    if unknown:
        raise ValueError(f"{kind} has no argument {shown(unknown[0])}")
    if kind == "Shortcut":
        return Shortcut(parts["body"], parts["shortcut"], **given)
    with torch.device("meta"):
        made = LAYERS[kind](**given)
    if node.get("converted") is True:
        made = convert(made)
        vars(made).pop("report", None)
    return made


def _argument(value: Any, depth: int = 0) -> Any:
    if isinstance(value, list) and depth < 4 and len(value) < 100:
        return tuple(_argument(part, depth + 1) for part in value)
    if value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) < 100):
        return value
    raise ValueError(f"{shown(value)} is not an argument of a layer")


def _attach_adapters(module: nn.Module, found: Any) -> None:
    for name, about in dict(found).items():
        rank, scale = about["rank"], about["scale"]
        if not (rank is None or (type(rank) is int and rank > 0)) or type(scale) is not float:
            raise ValueError("the rank or scale of an adapter is not a number")
        attach(module, name, rank, scale)


def restore_modes(module: nn.Module, node: Node) -> None:
    """Set train or eval mode of each layer as described."""
    module.training = bool(node.get("training", True))
    for key, child in node.get("children", {}).items():
        if child is not None and child["kind"] != "same":
            restore_modes(module._modules[key], child)  # type: ignore[arg-type]
    for key in PARTS & set(module._modules):
        module.get_submodule(key).train(module.training)


def differences(a: Any, b: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """The layers in which two descriptions differ: (path, layer in a, layer in b)."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        if a is not b:
            yield path, _shown_node(a), _shown_node(b)
        return
    if a.get("operator") != b.get("operator") or a.get("kind") != b.get("kind") or _essential(a) != _essential(b):
        yield path, _shown_node(a), _shown_node(b)
        return
    inside, others = a.get("children", {}), b.get("children", {})
    if not isinstance(inside, dict):
        inside = {}
    for key in [*inside, *(key for key in others if key not in inside)]:
        yield from differences(inside.get(key), others.get(key), f"{path}.{key}" if path else key)


def _essential(node: Node) -> Any:
    """What two descriptions of a layer must share. Arguments of other versions of torch are left out."""
    given, known = node.get("arguments", {}), _arguments(node["kind"]) if node.get("kind") in LAYERS else {}
    if isinstance(given, dict):
        given = {key: v for key, v in given.items() if key in known and key not in IGNORED and v != known[key]}
    return given, node.get("adapters")


def _shown_node(node: Any) -> str:
    if not isinstance(node, dict):
        return "missing"
    kind, given = node.get("kind"), node.get("operator") or node.get("arguments")
    if kind == "other":
        return f"of class {node.get('class')}"
    named = given if isinstance(given, dict) else {}
    listed = ", ".join(f"{key}={value!r}" for key, value in named.items() if key != "operator")
    text = f"{named.get('operator', kind)}({listed})"
    text += f" with adapters {node['adapters']}" if node.get("adapters") else ""
    return text if len(text) < 200 else f"{text[:196]}..."
