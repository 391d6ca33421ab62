"""Saving and loading models: weights as safetensors, the layers as JSON in the metadata. Loading executes no code."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gconv.arguments import checked, kind_of, shown
from gconv.description import Node, build, describe_module, differences, restore_modes
from gconv.errors import InputError, first_line

VERSION = 1
MAX_HEADER_BYTES = 1 << 24
KEY = "gconv"  # key of the description in the file's metadata


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
    >>> from gconv import GConv
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
        "version": VERSION, "module": describe_module(module), "same": same, "frozen": frozen
    }  # fmt: skip
    try:
        about["digest"] = _digest(about, tensors)
        metadata = {KEY: json.dumps(about)}
    except TypeError as error:
        raise InputError(f"The layers of the model cannot be described as JSON: {first_line(error)}.") from error
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
        raise kind(f"The model cannot be stored as safetensors: {first_line(error)}.") from error
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
            raise InputError(f"{name} of the model is {kind_of(value)}, but only tensors can be stored.")
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
        made = build(about["module"], "", {})
    except InputError as error:
        raise InputError(f"{_file(path)} cannot be restored: {error}") from None
    _check_tensors(tensors, made, path, exact=False)
    _fill(made, tensors, about["same"], set(about["frozen"]))
    restore_modes(made, about["module"])
    return made


def _file(path: str | PathLike[str]) -> str:
    return f"The file {os.fspath(path)}"


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
        raise InputError(f"{_file(path)} is damaged: {first_line(error)}.") from None


def _check_tensors(tensors: Mapping[str, Tensor], module: nn.Module, path: Any, exact: bool) -> None:
    """Check that names, shapes and dtypes are those of the module. Raises: InputError."""
    expected = module.state_dict(keep_vars=True)
    owner = "the model" if exact else "its own description"
    lacking = [name for name in expected if name not in tensors]
    more = [name for name in tensors if name not in expected]
    for what, names in (("has no tensor", lacking), ("has the unexpected tensor", more)):
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


def _compare(ours: Any, theirs: Node, path: Any) -> None:
    """Check that the file describes the layers of the model. Raises: InputError."""
    for place, a, b in differences(ours, theirs, ""):
        at = f"its layer {shown(place)}" if place else "the model"
        raise InputError(f"{_file(path)} holds another network: {at} is {a} there, but {b} in the model it is for.")
