"""Copies of Keras layers and models, which behave as the original in all that a user can see.

Keras copies by serialisation (copy.deepcopy calls it). This needs every function to be registered and every class of
the user to define get_config, and does not keep: hooks, attributes that are no arguments, methods replaced on the
instance, the names of parameters in the state_dict, frozen single variables, LoRA matrices, the state of seeds.
`duplicate` registers for the time of the copy what a model uses, copies layers of classes of the user attribute by
attribute (`rebuilt`), and then transfers the rest.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import torch
from torch import Tensor, nn

from gconv.errors import InputError, both, first_line
from gconv.interop.peer import base_class, original_class

HOOKS = [name for name in vars(nn.Module()) if "hook" in name]
SETTINGS = {
    "training", "name", "_path", "_remat_mode", "autocast", "supports_jit", "_supports_masking", "_convert_input_args",
    "_allow_non_tensor_positional_args", "_input_spec",
}  # fmt: skip
OWN = {"build", "quantize", "gconv"}  # attributes of an instance that its copy makes itself


def parts(layer: Any) -> dict[str, nn.Module]:
    """The sublayers of a Keras model or layer, which Keras does not register as torch submodules.

    Keras does not require different names, so a name that is taken gets a number.
    """
    own: dict[str, nn.Module] = {}
    taken: dict[str, int] = {}
    for part in layer._flatten_layers(include_self=False, recursive=False):
        taken[part.name] = n = taken.get(part.name, 0) + 1
        own[part.name if n == 1 else f"{part.name} ({n})"] = part
    held = {k: m for k, m in layer._modules.items() if m is not None and not isinstance(m, nn.ParameterDict)}
    return own | {k: m for k, m in held.items() if not isinstance(m, keras.Layer)}


def duplicate(layer: Any, tensors: dict[int, Tensor]) -> Any:
    """A copy of a Keras layer or model.

    Args:
        layer: the outermost layer of Keras.
        tensors: the tensors of the copies made so far, by the id of their original; extended. Layers that several
            models share have one copy in each, with the same tensors.

    Raises:
        InputError: if Keras cannot serialise the layer.
    """
    memo: dict[int, Any] = {}
    try:
        with serialisable(layer, memo), same_seeds():
            twin = copied(layer, memo)
    except Exception as error:
        lines = str(error).splitlines()
        why = next((line for line in lines if line.startswith("Exception encountered:")), first_line(error))
        said = (
            f"{type(layer).__name__} cannot be copied: Keras copies a model by its serialisation, as model.save does, "
            f"which failed: {why.removeprefix('Exception encountered: ').rstrip('.')}. "
            "Pass the layers and models inside it one by one."
        )
        raise both(InputError, error, said) from error
    found = list(pairs(layer, twin, set()))
    memo = {id(old): new for old, new in found}
    for old, new in found:
        transfer_variables(old, new, tensors)
    for old, new in found:
        transfer_attributes(old, new, memo)
        held = old._modules.get("_torch_params")
        if held is None:
            new._modules.pop("_torch_params", None)
        elif all(id(tensor) in tensors for tensor in held.values()):
            named = nn.ParameterDict({name: tensors[id(tensor)] for name, tensor in held.items()})
            new._torch_params = named.train(held.training)
    return twin


def pairs(old: Any, new: Any, seen: set[int]) -> Iterator[tuple[Any, Any]]:
    """A layer and its copy, and all layers inside them."""
    seen.add(id(old))
    yield old, new
    theirs, mine = (parts(layer) | layer._modules for layer in (old, new))
    if mine.keys() == theirs.keys():
        mine = {name: mine[name] for name in theirs}
    for a, b in zip(theirs.values(), mine.values(), strict=False):  # names that __init__ chose are others in the copy
        if isinstance(a, keras.Layer) and base_class(a) is base_class(b) and id(a) not in seen:
            yield from pairs(a, b, seen)


def variables(layer: Any) -> list[Any]:
    """The variables that a layer itself holds, with the state of its seeds."""
    seeds = [generator.state for generator in layer._seed_generators]
    return [*layer._trainable_variables, *layer._non_trainable_variables, *seeds]


def transfer_variables(old: Any, new: Any, tensors: dict[int, Tensor]) -> None:
    """Give the variables of a copy the values, names and flags of the original's."""
    mine, theirs = variables(new), variables(old)
    if [v.shape for v in mine] != [v.shape for v in theirs]:
        return
    for v, w in zip(theirs, mine, strict=True):
        if v._value is None:  # not initialised
            continue
        w._value = tensors.setdefault(id(v._value), w._value)
        w.assign(v)
        if w.trainable != v.trainable:
            w.trainable = v.trainable
        w._path = v._path
        w._value.requires_grad_(v._value.requires_grad)
        w.regularizer, w.constraint = v.regularizer, v.constraint


def transfer_attributes(old: Any, new: Any, memo: dict[int, Any]) -> None:
    """Give a copy the settings, the hooks and the additional attributes of the original."""
    target = vars(new)
    target |= {name: value for name, value in vars(old).items() if name in SETTINGS}
    for name, value in vars(old).items():
        if name in HOOKS:
            target[name] = copy.copy(value)
        elif name not in target and name[0] != "_" and name not in OWN:
            target[name] = value
            with suppress(Exception):  # what cannot be copied is shared
                target[name] = copy.deepcopy(value, memo)


# -- layers of classes of the user -----------------------------------------------------------------------------------


KEPT = {
    "built", "_called", "_build_shapes_dict", "_parent_path", "_call_context_args", "_call_has_context_arg",
    "activity_regularizer", "_auto_config",
}  # fmt: skip
COMPILED = {
    "optimizer", "_compile_config", "_compile_loss", "_compile_metrics", "_loss_tracker", "train_function",
    "test_function", "predict_function", "gconv",
}  # fmt: skip


def is_own(layer: Any) -> bool:
    """Whether a layer or subclassed model is of a class of the user; not one that is a graph of layers."""
    return layer._obj_type() == "Layer" and not is_keras(original_class(type(layer)))


def copied(layer: Any, memo: dict[int, Any]) -> Any:
    """A copy of a layer, at most one for each."""
    if id(layer) not in memo:
        memo[id(layer)] = rebuilt(layer, memo) if is_own(layer) else copy.deepcopy(layer)
    return memo[id(layer)]


def rebuilt(old: Any, memo: dict[int, Any]) -> Any:
    """A copy of a layer without its __init__ and get_config: of what Keras tracks, and of all attributes."""
    cls: Any = original_class(type(old))
    new = cls.__new__(cls)
    base = keras.Model if isinstance(old, keras.Model) else keras.Layer
    base.__init__(new, name=old.name, trainable=old.trainable, dtype=old.dtype_policy)
    internal = vars(new).keys() - KEPT
    memo |= {id(old): new, id(old._tracker): new._tracker}
    for name, (_, items) in old._tracker.config.items():
        for item in items:
            new._tracker.add_to_store(name, memo.setdefault(id(item), _tracked(item, memo)))
    for name, part in old._modules.items():
        if isinstance(part, keras.Layer):
            new._modules[name] = copied(part, memo)
    for name, value in vars(old).items():
        if name not in internal | COMPILED:
            vars(new)[name] = value
            with suppress(Exception):  # what cannot be copied is shared
                vars(new)[name] = copy.deepcopy(value, memo)
    if old._tracker.locked:
        new._lock_state()
    if getattr(old, "compiled", False):
        new.compile_from_config(old.get_compile_config())
        theirs, mine = ([] if model.optimizer is None else model.optimizer.variables for model in (old, new))
        for v, w in zip(theirs, mine, strict=False):
            if v.shape == w.shape:
                w.assign(v)
    return new


def _tracked(item: Any, memo: dict[int, Any]) -> Any:
    """A copy of what Keras tracks: a layer, variable, generator of seeds or metric."""
    if id(item) in memo:
        return memo[id(item)]
    if isinstance(item, keras.Layer):
        return copied(item, memo)
    if isinstance(item, keras.Variable):
        new = copy.copy(item)
        if item._value is not None:
            new._value = nn.Parameter(item._value.detach().clone(), requires_grad=item._value.requires_grad)
        return new
    if isinstance(item, keras.random.SeedGenerator):
        new = copy.copy(item)
        new.state = memo.setdefault(id(item.state), _tracked(item.state, memo))
        return new
    return copy.deepcopy(item)


# -- what serialisation needs --------------------------------------------------------------------------------------


@contextmanager
def same_seeds() -> Iterator[None]:
    """Leaves the states of all random generators as they were: initialisers draw from them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def serialisable(layer: Any, memo: dict[int, Any]) -> Iterator[None]:
    """Registers the classes and functions that a model uses and that Keras would not find again.

    Layers of classes of the user are serialised as a number, and read as their copy.
    """
    known = keras.saving.get_custom_objects()
    before = dict(known)
    added: dict[str, Any] = {}
    undo: list[Callable[[], None]] = []
    own: list[Any] = []
    read = SimpleNamespace(from_config=lambda config: copied(own[config["gconv"]], memo))

    def replace(holder: dict[str, Any], key: str, value: Any) -> None:
        undo.append(partial(holder.__setitem__, key, holder[key]) if key in holder else partial(holder.pop, key))
        holder[key] = value

    def register(holder: dict[str, Any], methods: type) -> None:
        for key, value in list(holder.items()):
            if is_function(value) and not hasattr(methods, key):
                name = f"gconv_{len(added)}"  # a name of its own: several functions may have the same
                added[name] = value
                replace(holder, key, _stand_in(name))
                continue
            for item in flat(value):
                _add(item if is_function(item) else type(item), added, known)

    for part in layer._flatten_layers():
        register(vars(part), type(part))
        register(getattr(getattr(part, "_compile_config", None), "config", {}), object)
        if is_own(part):
            added[keras.saving.get_registered_name(type(part))] = read
            replace(vars(part), "get_config", partial(dict, gconv=len(own)))
            own.append(part)
        else:
            _add(type(part), added, known)
    known.update(added)
    try:
        yield
    finally:
        for step in undo:
            step()
        known.clear()
        known.update(before)


def is_function(value: Any) -> bool:
    """Whether a value is a function of the user, which Keras would serialise by its name or code."""
    return (
        callable(value)
        and not isinstance(value, (type, nn.Module))
        and not hasattr(value, "from_config")
        and not (inspect.isfunction(value) and is_keras(value))
    )


def is_keras(value: Any) -> bool:
    """Whether a class or function is one of Keras."""
    return (getattr(value, "__module__", None) or "").split(".")[0] == "keras"


def flat(value: Any) -> Iterator[Any]:
    """The items of nested lists and dictionaries; a value of another type itself."""
    if isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from flat(item)
    else:
        yield value


def _add(thing: Any, added: dict[str, Any], known: dict[str, Any]) -> None:
    """Register a class that can be serialised, or a function."""
    thing = original_class(thing) if isinstance(thing, type) else thing
    if is_keras(thing) or (isinstance(thing, type) and not hasattr(thing, "from_config")):
        return
    name = getattr(thing, "__name__", "<lambda>")
    if name == "<lambda>" or known.get(keras.saving.get_registered_name(thing)) is thing:
        return
    if added.setdefault(name, thing) is not thing or known.get(name, thing) is not thing:
        raise ValueError(
            f"two classes or functions of it are named {name!r}. Register them under different names with "
            "keras.saving.register_keras_serializable"
        )


def _stand_in(name: str) -> Callable[..., Any]:
    """A function of this name, for Keras to serialise."""

    def function(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    function.__name__ = name
    return function
