"""Saving and loading models: weights as safetensors, the layers as JSON in the metadata. Loading executes no code."""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from gconv.adapters import adapters, attach
from gconv.arguments import checked, shown
from gconv.blocks import Shortcut
from gconv.caches import function
from gconv.errors import InputError
from gconv.interop.convert import convert
from gconv.interop.converted import Converted
from gconv.interop.peer import base_class
from gconv.module import GConv
from gconv.spec import OperatorSpec

VERSION = 1
MAX_HEADER_BYTES = 1 << 24
KEY = "gconv"  # key of the description in the file's metadata
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


# -- a module as data ----------------------------------------------------------------------------------------------


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


# -- save ----------------------------------------------------------------------------------------------------------


@checked
def save(module: nn.Module, path: str | PathLike[str]) -> None:
    """Write a model to a file: its weights as safetensors, its layers as JSON in the metadata.

    Meaning: any reader of safetensors can read the tensors, by their names in the state_dict; `gconv.load` restores
    the model. The file is replaced atomically: if saving fails, the former file is unchanged. Adapters, tied weights,
    shared layers, frozen parameters and the mode (train or eval) of each layer are stored.

    Traps: the state of optimisers is not stored, nor are hooks and parametrizations other than adapters. A model with
    these, or with user-defined classes, is loaded by `gconv.load(path, into=model)`.

    Args:
        module: any module.
        path: of the file; the usual suffix is ".safetensors".

    Raises:
        TypeError: if module is not a module.
        InputError: if a parameter is not initialised, or is not a dense tensor.
        OSError: if the file cannot be written.

    >>> import tempfile, gconv
    >>> from gconv.operators import cheb, gcn
    >>> net = nn.ModuleList([GConv(cheb(4, 8, k=3)), GConv(gcn(8, 2))])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     gconv.save(net, f"{folder}/net.safetensors")
    ...     twin = gconv.load(f"{folder}/net.safetensors")
    >>> twin[0], torch.equal(twin[0].weight, net[0].weight)
    (GConv(cheb(4, 8, k=3)), True)
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if not isinstance(module, nn.Module):
        raise TypeError(f"save takes a torch module, but it was given {shown(module)}.")
    tensors, same = _tensors(module)
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    about: dict[str, Any] = {
        "version": VERSION,
        "module": describe_module(module),
        "same": same,
        "frozen": frozen,
    }
    try:
        about["digest"] = _digest(about, tensors)
        metadata = {KEY: json.dumps(about)}
    except TypeError as error:
        raise InputError(f"The layers of the model cannot be described as JSON: {_first_line(error)}.") from error
    where = Path(os.path.realpath(path))  # a link is kept, and its target replaced
    if where.is_dir():
        raise IsADirectoryError(errno.EISDIR, "this is a folder, give the name of a file", str(path))
    if not where.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(Path(path).parent))
    if where.exists() and not where.is_file():  # it would be replaced
        raise OSError(errno.EINVAL, "this is a device or a pipe, give the name of a file", str(path))
    trial = where.with_name(f".{where.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(trial, "xb") as file:
            mode = os.stat(where if where.is_file() else file.fileno()).st_mode
        save_file(tensors, trial, metadata)
        with suppress(OSError):  # safetensors allows only the owner to read the file
            os.chmod(trial, stat.S_IMODE(mode))
        with open(trial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(trial, where)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        kind = OSError if "I/O error" in str(error) else InputError
        raise kind(f"The model cannot be stored as safetensors: {_first_line(error)}.") from error
    except OSError as error:
        if error.filename is None or os.fspath(error.filename) != str(trial):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # not the name of the temporary file
    finally:
        trial.unlink(missing_ok=True)


def _tensors(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of the state_dict, tied ones once, and the other names of tied tensors -> the stored name."""
    tensors: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise InputError(f"{name} of the model is a {type(value).__name__}, but only tensors can be stored.")
        if is_lazy(value) or value.is_meta:
            raise InputError(f"{name} of the model has no values yet: run the model once, or load its weights.")
        if value.layout != torch.strided or value.is_quantized:
            raise InputError(f"{name} of the model is not a dense tensor: convert it, e.g. by to_dense().")
        if id(value) in first:
            same[name] = first[id(value)]
            continue
        first[id(value)] = name
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    return tensors, same


def _digest(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the description and of all tensors, sorted by name."""
    described = {key: value for key, value in about.items() if key != "digest"}
    total = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        if tensor.numel():
            total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


# -- load ----------------------------------------------------------------------------------------------------------


@checked
def load(path: str | PathLike[str], *, into: nn.Module | None = None) -> nn.Module:
    """Load a model that `gconv.save` wrote.

    Meaning: layers are created by name from gconv's registered operators and a fixed list of torch.nn classes
    (containers, convolutions, pooling, norms, activations), with checked arguments; nothing is unpickled, imported or
    executed. For models with user-defined classes, create the model and pass it as `into`.

    Traps: the tensors are on the CPU, in the memory format of new layers.

    Args:
        path: of the file.
        into: a model with the same layers. Its weights are replaced, all or none, and it is returned. As with
            load_state_dict, it stays in train or eval mode, and what it has frozen stays frozen.

    Raises:
        InputError: if the file is damaged, has another format or version, describes an unknown operator or layer,
            needs `into`, or describes another network than `into`.
        OSError: if the file cannot be read.

    >>> import tempfile, gconv
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     gconv.save(nn.Linear(2, 3), f"{folder}/a.safetensors")
    ...     gconv.load(f"{folder}/a.safetensors", into=nn.Linear(3, 3))
    Traceback (most recent call last):
        ...
    gconv.errors.InputError: The file ...a.safetensors holds another network: the model is Linear(in_features=2, ...
    """
    if into is not None and not isinstance(into, nn.Module):
        raise TypeError(f"into must be a torch module, but it is {shown(into)}.")
    about = _read_header(path)
    tensors = _read_tensors(path)
    if _digest(about, tensors) != about["digest"]:
        raise InputError(f"{_file(path)} is damaged: its content does not match its checksum.")
    for name, first in about["same"].items():
        if first not in tensors or name in tensors:
            raise InputError(f"{_file(path)} is damaged: it has no tied tensors {shown(name)} and {shown(first)}.")
        tensors[name] = tensors[first]
    if into is not None:
        _compare(about["module"], describe_module(into), path)
        _check_tensors(tensors, into, path, exact=True)
        into.load_state_dict(tensors)
        return into
    try:
        made = _build(about["module"], "", {})
    except InputError as error:
        raise InputError(f"{_file(path)} cannot be restored: {error}") from None
    _check_tensors(tensors, made, path, exact=False)
    _fill(made, tensors, about["same"], set(about["frozen"]))
    _restore_modes(made, about["module"])
    return made


def _file(path: str | PathLike[str]) -> str:
    return f"The file {os.fspath(path)}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _read_header(path: str | PathLike[str]) -> dict[str, Any]:
    """The description in the metadata, checked. Raises: InputError."""
    with open(path, "rb") as file:
        total = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if total < 8 or length > total - 8 or length < 2:
            raise InputError(f"{_file(path)} is not a safetensors file, or it is truncated.")
        if length > MAX_HEADER_BYTES:
            raise InputError(f"{_file(path)} has a header of {length} bytes; at most {MAX_HEADER_BYTES} are read.")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        entry = header.get("__metadata__", {}).get(KEY)
    except (ValueError, RecursionError, AttributeError):
        raise InputError(f"{_file(path)} is damaged: its header cannot be read.") from None
    if not isinstance(entry, str):
        raise InputError(
            f"{_file(path)} was not written by gconv.save: read its tensors with safetensors and load_state_dict."
        )
    try:
        about = json.loads(entry)
        version = about["version"]
        if version != VERSION:
            raise InputError(
                f"{_file(path)} has version {shown(version)} of the format, but this gconv reads version {VERSION}."
            )
        kinds = {"module": dict, "same": dict, "frozen": list, "digest": str}
        if not all(isinstance(about[key], kind) for key, kind in kinds.items()):
            raise ValueError
        words = [*about["same"], *about["same"].values(), *about["frozen"]]
        if not all(isinstance(word, str) for word in words):
            raise ValueError
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError(f"{_file(path)} is damaged: its description of the model cannot be read.") from None
    return dict(about)


def _read_tensors(path: str | PathLike[str]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{_file(path)} is damaged: {_first_line(error)}.") from None


def _check_tensors(tensors: Mapping[str, Tensor], module: nn.Module, path: Any, exact: bool) -> None:
    """Check that names, shapes and dtypes are those of the module. Raises: InputError."""
    expected = module.state_dict(keep_vars=True)
    owner = "the model" if exact else "its own description"
    lacking = [name for name in expected if name not in tensors]
    more = [name for name in tensors if name not in expected]
    for what, names in (("has no", lacking), ("has a tensor too many,", more)):
        if names:
            rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"{_file(path)} does not fit {owner}: it {what} {shown(names[0])}{rest}.")
    for name, tensor in tensors.items():
        want = expected[name]
        if exact and (is_lazy(want) or want.is_meta):
            raise InputError(f"{name} of the model to load into has no memory yet: run it once, or use to_empty().")
        if tensor.shape != want.shape:
            raise InputError(
                f"{_file(path)} does not fit {owner}: {name} has shape {tuple(tensor.shape)}, not {tuple(want.shape)}."
            )
        floating = tensor.is_floating_point() or tensor.is_complex()
        if tensor.dtype != want.dtype and (exact or not (want.is_floating_point() and floating)):
            raise InputError(f"{_file(path)} does not fit {owner}: {name} is {tensor.dtype}, not {want.dtype}.")


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], same: Mapping[str, str], frozen: set[str]) -> None:
    """Replace the meta tensors of a module by the loaded ones, with the strides of the meta tensors."""
    made: dict[str, Tensor] = {}
    for prefix, part in module.named_modules():
        for group in (part._parameters, part._buffers):
            for key, meta in group.items():
                name = f"{prefix}.{key}" if prefix else key
                if meta is None or name not in tensors:
                    continue
                first = same.get(name, name)
                if first not in made:
                    value = torch.empty_like(meta, dtype=tensors[name].dtype, device="cpu").copy_(tensors[name])
                    made[first] = nn.Parameter(value, name not in frozen) if isinstance(meta, nn.Parameter) else value
                group[key] = made[first]


# -- a module from data --------------------------------------------------------------------------------------------


def _build(node: Any, path: str, made: dict[str, nn.Module]) -> nn.Module:
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
            parts[key] = _build(child, f"{path}.{key}" if path else key, made)
    try:
        module = _make(node, kind, parts)
        _attach_adapters(module, node.get("adapters", {}))
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise InputError(f"{place} cannot be created: {_first_line(error)}.") from None
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


def _restore_modes(module: nn.Module, node: Node) -> None:
    module.training = bool(node.get("training", True))
    for key, child in node.get("children", {}).items():
        if child is not None and child["kind"] != "same":
            _restore_modes(module._modules[key], child)  # type: ignore[arg-type]
    for key in PARTS & set(module._modules):
        module.get_submodule(key).train(module.training)


# -- whether two networks are the same -----------------------------------------------------------------------------


def _compare(ours: Any, theirs: Node, path: Any) -> None:
    """Check that the file describes the layers of the model. Raises: InputError."""
    for place, a, b in _differences(ours, theirs, ""):
        at = f"its layer {shown(place)}" if place else "the model"
        raise InputError(f"{_file(path)} holds another network: {at} is {a} there, but {b} in the model it is for.")


def _differences(a: Any, b: Any, path: str) -> Iterator[tuple[str, str, str]]:
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
        yield from _differences(inside.get(key), others.get(key), f"{path}.{key}" if path else key)


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
