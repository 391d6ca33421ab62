"""Where large results are written: advice about pages that changes no number."""

import pytest
import torch

from gconv.kernels import memory
from gconv.kernels.memory import empty


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 3), (2, 3), (5, 1 << 20)])
def test_it_is_a_tensor_like_any_other(shape, dtype):
    made = empty(torch.ones(1, dtype=torch.float64), shape, dtype)
    assert made.shape == shape and made.dtype == dtype and made.is_contiguous() and made.is_cpu
    assert torch.equal(made.fill_(3), torch.full(shape, 3, dtype=dtype))
    assert empty(made, (4,)).dtype == dtype and empty(made.to("meta"), (1 << 23,)).is_meta


def test_only_large_ones_are_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "_ADVISE", lambda first, size, what: asked.append((first, size)))
    small, large = empty(torch.ones(1), (1000,)), empty(torch.ones(1), (1 << 21,))
    ((first, size),) = asked
    assert small.numel() == 1000 and first % 4096 == 0
    assert large.data_ptr() <= first < first + size == large.data_ptr() + (1 << 23), "nothing outside the tensor"


def test_without_such_pages(monkeypatch):
    monkeypatch.setattr(memory, "_ADVISE", None)
    assert empty(torch.ones(1), (1 << 21,)).fill_(2).sum() == 1 << 22
