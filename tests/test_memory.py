"""Where large results are written: room that is used again, and only once it is free."""

import ctypes
import gc

import pytest
import torch
from limits import forked, joined, started

from gconv.kernels import memory
from gconv.kernels.memory import empty


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 3), (2, 3), (5, 1 << 20)])
def test_it_is_a_tensor_like_any_other(shape, dtype):
    made = empty(torch.ones(1, dtype=torch.float64), shape, dtype)
    assert made.shape == shape and made.dtype == dtype and made.is_contiguous() and made.is_cpu
    assert torch.equal(made.fill_(3), torch.full(shape, 3, dtype=dtype))
    assert empty(made, (4,)).dtype == dtype and empty(made.to("meta"), (1 << 23,)).is_meta


@pytest.fixture
def fresh():
    """No room lies idle, before and after."""
    memory.release()
    yield
    memory.release()


@pytest.mark.usefixtures("fresh")
def test_room_is_used_again_once_nothing_lies_in_it():
    one = empty(torch.ones(1), (1 << 21,)).fill_(1)
    other = empty(one, (1 << 21,)).fill_(2)
    place, view = one.data_ptr(), one[5:].view(torch.int32)
    assert other.data_ptr() != place
    del one
    gc.collect()
    assert empty(other, (1 << 21,)).data_ptr() != place, "a view still reads there"
    assert view[0] == torch.ones(1).view(torch.int32) and other.sum() == 1 << 22
    del view
    gc.collect()
    near = empty(other, (1 << 20,), torch.float64)
    assert near.data_ptr() == place
    assert empty(other, (1 << 23,)).data_ptr() != place, "too large for it"


@pytest.mark.usefixtures("fresh")
def test_a_small_result_leaves_large_room_alone():
    place = empty(torch.ones(1), (1 << 24,)).data_ptr()
    gc.collect()
    assert empty(torch.ones(1), (1 << 21,)).data_ptr() != place
    assert empty(torch.ones(1), (1 << 24,)).data_ptr() == place


@pytest.mark.usefixtures("fresh")
def test_no_more_lies_idle_than_may(monkeypatch):
    monkeypatch.setattr(memory, "MAX_BYTES_FREE", 3 << 23)
    made = [empty(torch.ones(1), (1 << 21,)) for _ in range(5)]
    assert not memory._free_buffers
    made.clear()
    gc.collect()
    assert 0 < sum(map(len, memory._free_buffers)) <= 3 << 23
    memory.release()
    assert not memory._free_buffers


@pytest.mark.usefixtures("fresh")
def test_gradients_and_threads_share_no_room():
    """Many results at once, each of which says whose it is."""
    found = []

    def work(number):
        for _ in range(20):
            mine = empty(torch.ones(1), (1 << 20,)).fill_(number)
            found.append(bool((mine == number).all()))

    joined([started(work, number) for number in range(4)])
    assert len(found) == 80 and all(found)


@pytest.mark.usefixtures("fresh")
def test_room_is_not_shared_with_forked_workers():
    """A worker writes one byte: one that runs torch's threads after a fork may wait for ever."""
    mine = empty(torch.ones(1), (1 << 21,)).fill_(1)

    def write():
        ctypes.memset(mine.data_ptr(), 0, 4)
        return 7

    assert forked(write) == 7
    assert mine[0] == 1


def test_where_the_system_has_none(monkeypatch):
    monkeypatch.setattr(memory, "_ADVICE", None)
    assert empty(torch.ones(1), (1 << 21,)).fill_(2).sum() == 1 << 22
    assert torch.func.vmap(lambda x: empty(x, (1 << 21,)).fill_(1).sum() * x)(torch.ones(2)).tolist() == [1 << 21] * 2


def test_compilers_see_a_tensor_of_torch():
    def double(x):
        return empty(x, x.shape).copy_(x) * 2

    x = torch.ones(1 << 21)
    assert torch.equal(torch.compile(double, fullgraph=True, backend="aot_eager")(x), x * 2)
