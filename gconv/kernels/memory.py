"""Where large results are written: memory that is kept and used again.

The C library takes a large array from the system anew each time, and the system clears it page by page as it is first
written, which costs more than most products here, the more so where the machine is virtual and its host has the pages
back. Room that a result has left is therefore kept for the next of about its size. It is in pages of 2 MiB, where the
system has them: rows gathered from there miss the processor's page tables less often.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections import deque
from collections.abc import Sequence
from threading import RLock

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from gconv.caches import register
from gconv.kernels.transforms import is_plain_eager

LARGE = 1 << 22  # bytes: two pages of 2 MiB
PAGE = 1 << 21
IDLE = 1 << 29  # bytes of room that may lie idle
SPARE = 8  # a result may lie in room that is larger by this part of it
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)  # not shared with forked workers
_idle: deque[mmap.mmap] = deque()  # what was left last is at the end
_lock = RLock()  # what a garbage collection leaves may come while it is held


def _after_fork() -> None:
    global _lock
    _lock = RLock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """`like.new_empty(shape, dtype=dtype)`; on the CPU a large one lies in room that is used again.

    Its storage can't be resized.

    >>> empty(torch.ones(1), (2, 3), torch.float64).shape
    torch.Size([2, 3])
    """
    kind = dtype or like.dtype
    size = math.prod(shape) * kind.itemsize
    if size < LARGE or not (_ADVICE is not None and like.is_cpu and type(like) in (Tensor, Parameter)):
        return like.new_empty(shape, dtype=dtype)
    if not is_plain_eager():
        return like.new_empty(shape, dtype=dtype)
    room = _take(size)
    lent = np.frombuffer(room, np.uint8, size)  # lives as long as the tensor's storage
    weakref.finalize(lent, _leave, room).atexit = False
    return torch.frombuffer(lent, dtype=kind).view(*shape).detach()  # no view, to autograd


def _take(size: int) -> mmap.mmap:
    with _lock:
        for number in range(len(_idle) - 1, -1, -1):
            if size <= len(_idle[number]) <= size + max(PAGE, size // SPARE):
                room = _idle[number]
                del _idle[number]
                return room
    room = mmap.mmap(-1, -(-size // PAGE) * PAGE, flags=_PRIVATE)
    room.madvise(_ADVICE)  # type: ignore[arg-type]
    return room


def _leave(room: mmap.mmap) -> None:
    with _lock:
        _idle.append(room)
        total = sum(map(len, _idle))
        while total > IDLE:
            total -= len(_idle.popleft())


def release() -> None:
    """Hand idle room back to the system.

    >>> release()
    """
    with _lock:
        _idle.clear()


register(
    "free buffers",
    _idle,
    _idle.__len__,
    lambda: [np.frombuffer(room, np.uint8) for room in list(_idle)],
    release,
    f"{IDLE >> 20} MiB",
)
