"""Everything that gconv keeps between calls, in one list: `cache_info` shows it and `clear_cache` empties it.

    Cache        results by value, such as plans and the structures of grids: a bounded number, the oldest is dropped
    WeakCache    results by the identity of a tensor; they go with the tensor
    function     what a pure function returned
    Holders      results that graphs, layers and structures hold themselves; they go with these objects
    register     anything else, such as the pool of buffers

Reading a cache is a plain look-up in a dictionary. All of them may be read, written and emptied by several threads at
once, and by forked processes.
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
    """What a cache holds: its entries, the bytes of their tensors and buffers, and its bound in words.

    >>> CacheInfo(entries=2, bytes=1024, bound="64 entries").bytes
    1024
    """

    entries: int
    bytes: int
    bound: str


@dataclass(frozen=True)
class _Entry:
    held: Any  # the cache itself, by which tests find it
    entries: Callable[[], int]
    values: Callable[[], Iterable[Any]]
    keys: Callable[[], Iterable[Any]]  # what belongs to others, and is not counted
    clear: Callable[[], object]
    bound: str


_ENTRIES: dict[str, _Entry] = {}
_lock = RLock()  # reentrant: a garbage collection may drop entries while it is held


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
    """Enter a cache into the list.

    Args:
        name: what it holds.
        held: the object that holds it.
        entries, values: how many entries, and what is in them.
        clear: empties it.
        bound: how much it may hold, in words.
        keys: objects of the user; the bytes of their tensors do not count.
    """
    _ENTRIES[name] = _Entry(held, entries, values, keys, clear, bound)


class Cache(dict[K, V], Generic[K, V]):
    """Results by value: a dictionary of at most `bound` entries, which drops the oldest.

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


class WeakCache(WeakIdKeyDictionary):
    """Results by the identity of a tensor; each goes with its tensor."""

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
    """A decorator: a pure function whose results are cached, at most `bound` of them.

    With `stays`, `clear_cache` leaves them, such as classes, of which there must not be two.
    """

    def decorate(compute: Callable[P, T]) -> Callable[P, T]:
        made: Any = lru_cache(bound)(compute)
        limit = "one entry an argument" if bound is None else f"{bound} entries"
        register(
            name, made, lambda: made.cache_info().currsize, tuple, (lambda: None) if stays else made.cache_clear, limit
        )
        return made

    return decorate


class Holders(Generic[T]):
    """Results that objects hold themselves, in dictionaries; they go with the objects.

    Args:
        name: what they are.
        owner: what holds them, in words.
        caches: the dictionaries of an object.
        own: tensors of an object that are no results.
    """

    def __init__(
        self,
        name: str,
        owner: str,
        caches: Callable[[T], Iterable[Any]],
        own: Callable[[T], Iterable[Any]] = lambda holder: (),
    ) -> None:
        self._live: WeakValueDictionary[int, Any] = WeakValueDictionary()
        self._caches, self._own = caches, own
        bound = f"as long as the {owner} live"
        register(name, self, self._count, self._values, self._clear, bound, self._owned)

    def add(self, holder: T) -> None:
        """List an object that holds results from now on."""
        self._live[id(holder)] = holder

    def _all(self) -> list[Any]:
        return [cache for holder in list(self._live.values()) for cache in self._caches(holder)]

    def _count(self) -> int:
        return sum(map(len, self._all()))

    def _values(self) -> list[Any]:
        return [value for cache in self._all() for value in list(cache.values())]

    def _owned(self) -> list[Any]:
        return [tensor for holder in list(self._live.values()) for tensor in self._own(holder)]

    def _clear(self) -> None:
        for cache in self._all():
            cache.clear()


def _count_bytes(values: Iterable[Any], seen: set[int]) -> int:
    """Bytes of the tensors and arrays that values lead to through containers and objects of gconv; each counts once."""
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
        return list(value.values())
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
    """What gconv keeps between calls: the entries, bytes and bound of each cache, by its name.

    Plans, structures of grids and other results by value have a bounded number of entries each. Free buffers for large
    results of the CPU take 512 MiB at most. All else belongs to a graph, tensor or layer of yours and goes with it.
    A buffer that two caches share counts in the first of them.

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
    for name, entry in _ENTRIES.items():
        _count_bytes((key for key in entry.keys() if isinstance(key, Tensor)), seen)  # noqa: SIM118
        found[name] = CacheInfo(entry.entries(), _count_bytes(entry.values(), seen), entry.bound)
    return found


def clear_cache() -> None:
    """Drop everything that gconv keeps between calls; layers and graphs compute it again when they need it.

    Structures that functions of torch.compile read stay, and go with their layers. Tensors that were declared by
    `gconv.constant` stay constant.

    >>> clear_cache()
    """
    for entry in list(_ENTRIES.values()):
        entry.clear()
