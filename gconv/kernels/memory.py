"""A pooled allocator for large CPU results.

The C library requests large arrays from the system each time, and the system zeroes fresh pages on first touch, which
costs more than most products here, in particular on virtual machines. Freed buffers are therefore kept and reused for
results of about the same size. They use huge pages of 2 MiB if the system has them, so that gathering rows from them
causes fewer TLB misses.
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

MIN_BYTES_POOLED = 1 << 22
PAGE_BYTES = 1 << 21
MAX_BYTES_FREE = 1 << 29  # limit of the free buffers
SLACK = 8  # a buffer may be larger than the result by 1 / SLACK of its size, or by one page
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)  # not shared with forked workers
_free_buffers: deque[mmap.mmap] = deque()  # the most recently freed one is last
_lock = RLock()  # reentrant: a garbage collection may free buffers while it is held


def _after_fork() -> None:
    global _lock
    _lock = RLock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None, *, reuse: bool = True) -> Tensor:
    """`like.new_empty(shape, dtype=dtype)`, in a pooled buffer if it is large and on the CPU.

    The storage of a pooled tensor cannot be resized. With reuse=False its buffer is returned to the system when it is
    freed, as for arrays of a size that no later result has.

    >>> empty(torch.ones(1), (2, 3), torch.float64).shape
    torch.Size([2, 3])
    """
    kind = dtype or like.dtype
    size = math.prod(shape) * kind.itemsize
    if size < MIN_BYTES_POOLED or not (_ADVICE is not None and like.is_cpu and type(like) in (Tensor, Parameter)):
        return like.new_empty(shape, dtype=dtype)
    if not is_plain_eager():
        return like.new_empty(shape, dtype=dtype)
    try:
        buffer = _acquire(size)
    except OSError:  # no such buffer on this system: torch's own error states how much was requested
        return like.new_empty(shape, dtype=dtype)
    array = np.frombuffer(buffer, np.uint8, size)  # lives as long as the tensor's storage
    if reuse:
        weakref.finalize(array, _release, buffer).atexit = False
    return torch.frombuffer(array, dtype=kind).view(*shape).detach()  # so that autograd does not treat it as a view


def _acquire(size: int) -> mmap.mmap:
    most = size + max(PAGE_BYTES, size // SLACK)
    with _lock:
        for buffer in reversed(tuple(_free_buffers)):  # a copy: a garbage collection may free more of them meanwhile
            if size <= len(buffer) <= most:
                try:
                    _free_buffers.remove(buffer)
                except ValueError:  # a signal handler has taken it
                    continue
                return buffer
    buffer = mmap.mmap(-1, -(-size // PAGE_BYTES) * PAGE_BYTES, flags=_PRIVATE)
    buffer.madvise(_ADVICE)  # type: ignore[arg-type]
    return buffer


def _release(buffer: mmap.mmap) -> None:
    with _lock:
        _free_buffers.append(buffer)
        while sum(map(len, tuple(_free_buffers))) > MAX_BYTES_FREE:
            _free_buffers.popleft()


def release() -> None:
    """Return the free buffers to the system.

    >>> release()
    """
    with _lock:
        _free_buffers.clear()


register(
    "free buffers",
    _free_buffers,
    _free_buffers.__len__,
    lambda: [np.frombuffer(buffer, np.uint8) for buffer in list(_free_buffers)],
    release,
    f"{MAX_BYTES_FREE >> 20} MiB",
)
