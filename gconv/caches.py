"""The caches of gconv, in one registry: `cache_info` lists them and `clear_cache` empties them.

    Cache        results by value, such as plans and the structures of grids: at most `bound` entries, oldest evicted
    WeakCache    results by the identity of a tensor, dropped with the tensor
    function     decorator: the results of a pure function
    Holders      results stored on graphs, layers and structures, dropped with these objects
    register     anything else, such as the pool of free buffers

Reading a cache is a plain dictionary look-up. All caches may be read, written and cleared from several threads at once,
and in forked processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import RLock
from types import MethodType
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")
P = ParamSpec("P")


class CacheInfo(NamedTuple):
    """The contents of a cache: number of entries, bytes of their tensors and buffers, and the bound as text.

    >>> CacheInfo(entries=2, bytes=1024, bound="64 entries").bytes
    1024
    """

    entries: int
    bytes: int
    bound: str


@dataclass(frozen=True)
class _Entry:
    held: Any  # the cache itself; tests find it by this
    entries: Callable[[], int]
    values: Callable[[], Iterable[Any]]
    keys: Callable[[], Iterable[Any]]  # objects of the user, whose bytes are not counted
    clear: Callable[[], object]
    bound: str


_ENTRIES: dict[str, _Entry] = {}
_lock = RLock()  # reentrant: a garbage collection may remove entries while it is held


def _after_fork() -> None:
    global _lock
    _lock = RLock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def register(
    name: str,
    held: Any,
    entries: Callable[[], int],
    values: Callable[[], Iterable[Any]],
    clear: Callable[[], object],
    bound: str,
    keys: Callable[[], Iterable[Any]] = tuple,
) -> None:
    """Add a cache to the registry.

    Args:
        name: what it holds.
        held: the object that holds the entries.
        entries, values: return the number of entries, and their values.
        clear: empties it.
        bound: its limit, as text.
        keys: returns objects of the user; the bytes of their tensors are not counted.
    """
    _ENTRIES[name] = _Entry(held, entries, values, keys, clear, bound)


class Cache(dict[K, V], Generic[K, V]):
    """A dictionary of at most `bound` entries; the oldest entry is evicted first.

    >>> squares = Cache("squares, in an example", 2)
    >>> for n in 1, 2, 3:
    ...     squares[n] = n * n
    >>> squares
    {2: 4, 3: 9}
    >>> del _ENTRIES["squares, in an example"]
    """

    def __init__(self, name: str, bound: int) -> None:
        super().__init__()
        self.bound = bound
        register(name, self, self.__len__, lambda: list(self.values()), self.clear, f"{bound} entries")

    def __setitem__(self, key: K, value: V) -> None:
        with _lock:
            while len(self) >= self.bound and key not in self:
                self.pop(next(iter(self)), None)
            super().__setitem__(key, value)

    def clear(self) -> None:
        with _lock:  # not while an entry is replaced
            super().clear()


class Own(dict[K, V], Generic[K, V]):
    """Results that one object caches for itself: its copies begin without any.

    >>> import copy
    >>> copy.deepcopy([Own(a=1)]), copy.copy(Own(a=1))
    ([{}], {})
    """

    def __copy__(self) -> Own[K, V]:
        return type(self)()

    def __deepcopy__(self, memo: object) -> Own[K, V]:
        return type(self)()


class OwnWeak(WeakKeyDictionary[K, V], Generic[K, V]):
    """As `Own`, by the identity of objects that are held weakly."""

    def __copy__(self) -> OwnWeak[K, V]:
        return type(self)()

    def __deepcopy__(self, memo: object) -> OwnWeak[K, V]:
        return type(self)()


class WeakCache(WeakIdKeyDictionary):
    """Results by the identity of a tensor; an entry is dropped with its tensor."""

    def __init__(self, name: str, clear: Callable[[], object] | None = None) -> None:
        super().__init__()
        register(
            name,
            self,
            self.__len__,
            lambda: list(self.data.values()),
            clear or self.clear,
            "as long as the tensors live",
            lambda: [ref() for ref in list(self.data)],
        )

    def clear(self) -> None:
        self.data.clear()


def function(name: str, bound: int | None = None, stays: bool = False) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator that caches the results of a pure function, at most `bound` of them.

    With `stays`, `clear_cache` keeps them: for results that must be unique, such as classes.
    """

    def decorate(compute: Callable[P, T]) -> Callable[P, T]:
        made: Any = lru_cache(bound)(compute)
        limit = "one entry per argument" if bound is None else f"{bound} entries"
        register(
            name, made, lambda: made.cache_info().currsize, tuple, (lambda: None) if stays else made.cache_clear, limit
        )
        return made

    return decorate


class Holders(Generic[T]):
    """Results that objects store in their own dictionaries; they are dropped with the objects.

    Args:
        name: what the results are.
        owner: what the objects are, in the plural.
        caches: returns the dictionaries of an object.
        own: returns tensors of an object that are not results, and so are not counted.
        stays: whether `clear_cache` keeps them.
    """

    def __init__(
        self,
        name: str,
        owner: str,
        caches: Callable[[T], Iterable[Any]],
        own: Callable[[T], Iterable[Any]] = lambda holder: (),
        stays: bool = False,
    ) -> None:
        self._live: WeakValueDictionary[int, Any] = WeakValueDictionary()
        self._caches, self._own = caches, own
        bound = f"as long as the {owner} live"
        clear = (lambda: None) if stays else self._clear
        register(name, self, self._count, self._values, clear, bound, self._owned)

    def add(self, holder: T) -> None:
        """Include an object."""
        self._live[id(holder)] = holder

    def _holders(self) -> list[T]:
        found = (ref() for ref in self._live.valuerefs())
        return [holder for holder in found if holder is not None]

    def _all(self) -> list[Any]:
        return [cache for holder in self._holders() for cache in self._caches(holder)]

    def _count(self) -> int:
        return sum(map(len, self._all()))

    def _values(self) -> list[Any]:
        return [value for cache in self._all() for value in _values(cache)]

    def _owned(self) -> list[Any]:
        return [tensor for holder in self._holders() for tensor in self._own(holder)]

    def _clear(self) -> None:
        for cache in self._all():
            cache.clear()


def _values(cache: Any) -> list[Any]:
    """The values of a mapping that other threads may change meanwhile: weak dictionaries are iterated in Python."""
    entries: Any = vars(cache)["data"] if isinstance(cache, WeakKeyDictionary) else cache
    return list(entries.values())


def _count_bytes(values: Iterable[Any], seen: set[int]) -> int:
    """Bytes of the tensors and arrays reachable from values through containers and gconv's objects; each counts once.

    `seen` holds the addresses of storages and the ids of objects that are counted already.
    """
    total, stack = 0, list(values)
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            try:
                storage = value.untyped_storage()
                place, size = storage.data_ptr(), 0 if value.is_meta else storage.nbytes()
            except (NotImplementedError, RuntimeError):  # sparse, fake or batched
                continue
        elif isinstance(value, np.ndarray):
            place, size = value.ctypes.data, value.nbytes
        else:
            if id(value) not in seen:
                seen.add(id(value))
                stack.extend(_parts(value))
            continue
        if place not in seen:
            seen.add(place)
            total += size
    return total


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping | WeakKeyDictionary):
        return _values(value)
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, partial):
        return value.func, *value.args, *value.keywords.values()
    if isinstance(value, MethodType):
        return (value.__self__,)
    if not isinstance(value, type) and type(value).__module__.startswith("gconv"):
        return list(getattr(value, "__dict__", {}).values())
    return ()


def cache_info() -> dict[str, CacheInfo]:
    """The entries, bytes and bound of each of gconv's caches, by name.

    Caches by value (plans, structures of grids) have a bounded number of entries each. Free buffers for large results
    on the CPU take at most 512 MiB. Everything else belongs to a graph, tensor or layer and is dropped with it.
    A buffer that two caches share is counted in the first.

    >>> from gconv import GConv, Graph
    >>> from gconv.operators import gcn
    >>> import torch
    >>> path = Graph(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]))
    >>> y = GConv(gcn(2, 3))(torch.ones(3, 2), path)
    >>> cache_info()["derived from graphs"].bytes > 0
    True
    """
    seen: set[int] = set()
    found = {}
    for name, entry in list(_ENTRIES.items()):
        _count_bytes((key for key in entry.keys() if isinstance(key, Tensor)), seen)  # noqa: SIM118
        found[name] = CacheInfo(entry.entries(), _count_bytes(entry.values(), seen), entry.bound)
    return found


def clear_cache() -> None:
    """Empty gconv's caches; layers and graphs recompute what they need.

    Structures that functions compiled by torch.compile read are kept until their layers are deleted. Tensors that were
    declared by `gconv.constant` stay constant.

    >>> clear_cache()
    """
    for entry in list(_ENTRIES.values()):
        entry.clear()
