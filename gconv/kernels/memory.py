"""Where large results are written, and what becomes of the holes that others leave.

The C library takes a large array from the system anew each time, and the system clears it page by page as it is first
written: 4 KiB at a time that costs more than most products here. Asked for pages of 2 MiB instead, it costs little, and
rows gathered from such an array miss the processor's page tables less often.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

LARGE = 1 << 22  # bytes: two pages of 2 MiB
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)
_C = ctypes.CDLL(None) if _ADVICE is not None else None
_ADVISE, _TRIM = getattr(_C, "madvise", None), getattr(_C, "malloc_trim", None)
if _ADVISE is not None:
    _ADVISE.argtypes, _ADVISE.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int


def empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """`like.new_empty(shape, dtype=dtype)`; on the CPU a large one is in large pages, where the system has them.

    >>> empty(torch.ones(1), (2, 3), torch.float64).shape
    torch.Size([2, 3])
    """
    made = like.new_empty(shape, dtype=dtype)
    size = made.numel() * made.element_size()
    if size >= LARGE and _ADVISE is not None and made.is_cpu and type(made) is Tensor:
        first = -(-made.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        _ADVISE(first, made.data_ptr() + size - first, _ADVICE)  # of no consequence where it is refused
    return made


def give_back(size: int) -> None:
    """Once something of so many bytes has been built: hand what that has freed back to the system, if it was much.

    Between arrays that are kept, the C library holds on to the room of those that are not; what comes next is larger
    and does not fit. It takes some milliseconds.

    >>> give_back(0)
    """
    if size >= LARGE and _TRIM is not None:
        _TRIM(0)
