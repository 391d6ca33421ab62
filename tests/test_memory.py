"""Pooled buffers of large results: reused, and only once they are free."""

import ctypes
import gc
import sys
from dataclasses import replace

import pytest
import torch
from limits import forked, joined, started

from gconv import GConv, module
from gconv.errors import Differentiable, InputError, ran_out_of_memory
from gconv.kernels import CSR, memory
from gconv.kernels.memory import empty
from gconv.kernels.registry import Kernel
from gconv.lowering import fixed
from gconv.operators import conv2d, gat, gatv2, gcn, sage
from gconv.operators.shapes import ring


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 3), (2, 3), (5, 1 << 20)])
def test_it_is_a_tensor_like_any_other(shape, dtype):
    made = empty(torch.ones(1, dtype=torch.float64), shape, dtype)
    assert made.shape == shape and made.dtype == dtype and made.is_contiguous() and made.is_cpu
    assert torch.equal(made.fill_(3), torch.full(shape, 3, dtype=dtype))
    assert empty(made, (4,)).dtype == dtype and empty(made.to("meta"), (1 << 23,)).is_meta


@pytest.fixture
def fresh():
    """No free buffers, before and after."""
    memory.release()
    yield
    memory.release()


@pytest.mark.usefixtures("fresh")
def test_a_buffer_is_reused_once_no_tensor_uses_it():
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
def test_a_small_result_does_not_take_a_large_buffer():
    place = empty(torch.ones(1), (1 << 24,)).data_ptr()
    gc.collect()
    assert empty(torch.ones(1), (1 << 21,)).data_ptr() != place
    assert empty(torch.ones(1), (1 << 24,)).data_ptr() == place


@pytest.mark.usefixtures("fresh")
def test_free_buffers_are_limited(monkeypatch):
    monkeypatch.setattr(memory, "MAX_BYTES_FREE", 3 << 23)
    made = [empty(torch.ones(1), (1 << 21,)) for _ in range(5)]
    assert not memory._free_buffers
    made.clear()
    gc.collect()
    assert 0 < sum(map(len, memory._free_buffers)) <= 3 << 23
    memory.release()
    assert not memory._free_buffers


@pytest.mark.usefixtures("fresh")
def test_a_buffer_that_is_not_for_reuse_is_returned():
    one = empty(torch.ones(1), (1 << 21,), reuse=False).fill_(1)
    assert one.sum() == 1 << 21
    del one
    gc.collect()
    assert not memory._free_buffers
    del (other := [empty(torch.ones(1), (1 << 21,))])[0]  # negative control
    gc.collect()
    assert not other and len(memory._free_buffers) == 1


@pytest.mark.usefixtures("fresh")
def test_building_a_pattern_leaves_no_free_buffers():
    """Entries that are sorted already need no permutation, whose array is freed; no result has its size."""
    n = 1 << 17
    pattern = CSR.build(torch.arange(n).repeat_interleave(16), torch.arange(16 * n) % n, n, n)
    gc.collect()
    assert pattern.perm is None and len(pattern.col) == 16 * n and not memory._free_buffers


@pytest.mark.usefixtures("fresh")
def test_threads_share_no_buffer():
    """Many results at once, each of which says whose it is."""
    found = []

    def work(number):
        for _ in range(20):
            mine = empty(torch.ones(1), (1 << 20,)).fill_(number)
            found.append(bool((mine == number).all()))

    joined([started(work, number) for number in range(4)])
    assert len(found) == 80 and all(found)


@pytest.mark.usefixtures("fresh")
def test_buffers_are_not_shared_with_forked_workers():
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


def test_without_a_buffer_from_the_system_torch_allocates(monkeypatch):
    def refuse(size):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(memory, "_acquire", refuse)
    assert empty(torch.ones(1), (1 << 21,)).fill_(2).sum() == 1 << 22


ALLOCATORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 1 GiB free.\nSee also ..."),
    RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
]


@pytest.mark.parametrize("error", ALLOCATORS, ids=["GPU", "CPU"])
@pytest.mark.parametrize("case", ["graph", "images"])
def test_a_layer_that_finds_no_memory_says_for_what(monkeypatch, error, case):
    """The allocator's error is simulated: in a first call, and in later ones, which go another way."""
    made = module.plan

    def fail(*_):
        raise error

    def plan(*arguments):
        found = made(*arguments)
        return replace(found, chosen=replace(found.chosen, run=fail, images=fail))

    monkeypatch.setattr(module, "plan", plan)
    spec, given = (
        (gcn(2, 3), (torch.ones(70, 2), ring(70))) if case == "graph" else (conv2d(2, 3, 3), (torch.ones(1, 2, 9, 9),))
    )
    layer = GConv(spec)
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            layer(*given, lowering="dense")
        said = str(caught.value)
        assert (
            said.startswith(f"{spec.name} ran out of memory on cpu: x {tuple(given[0].shape)} has 0.00")
            and "\n" not in said
        )
        assert "the lowering 'dense' makes arrays of up to" in said and "To use less memory: use lowering='" in said
        assert str(error).splitlines()[0].rstrip(".") in said and caught.value.__cause__ is error
    assert ("graph.sample" in said) == (case == "graph")


def subclasses(kind):
    return [below for one in kind.__subclasses__() for below in (one, *subclasses(one))]


def test_every_autograd_function_of_the_package_says_what_runs_out_of_memory():
    ours = {f for f in subclasses(torch.autograd.Function) if f.__module__.startswith("gconv.")}
    assert len(ours) > 10 and all(issubclass(f, Differentiable) for f in ours)


CALLS = {
    "sum_k S_k X W_k": lambda x: GConv(gcn(2, 3))(x, ring(70)),
    "heads_spmm": lambda x: GConv(gatv2(2, 3, heads=2))(x, ring(70)),
    "attention": lambda x: GConv(gat(2, 3))(x, ring(70)),
    "segment_max": lambda x: GConv(sage(2, 3, "max"))(x, ring(70)),
}


@pytest.mark.parametrize("error", ALLOCATORS, ids=["GPU", "CPU"])
@pytest.mark.parametrize("what", CALLS)
def test_a_backward_pass_that_finds_no_memory_says_for_what(monkeypatch, error, what):
    """The allocator's error is simulated in each function of a backward pass in turn."""

    def fail(*_):
        raise error

    y = CALLS[what](torch.ones(70, 2).requires_grad_())
    monkeypatch.setattr(fixed, "gradients", fail)
    homes = [vars(module) for name, module in sys.modules.items() if name.startswith("gconv.kernels.")]
    for kernel in {made for home in homes for made in home.values() if type(made) is Kernel}:
        monkeypatch.setattr(kernel, "backward", fail)
    with pytest.raises(type(error)) as caught:
        y.sum().backward()
    said = str(caught.value)
    assert (
        said.startswith("The backward pass of ") and " ran out of memory on cpu: the gradient of the result (" in said
    )
    assert " has 0.00" in said and "largest array saved for it (" in said and "\n" not in said
    assert str(error).splitlines()[0].rstrip(".") in said and "To use less memory: pass fewer signals" in said
    assert caught.value.__cause__ is error and said.count("ran out of memory on") == 1


def test_other_errors_of_a_backward_pass_stay_as_they_are(monkeypatch):
    def fail(*_):
        raise RuntimeError("something else")

    y = CALLS["sum_k S_k X W_k"](torch.ones(70, 2).requires_grad_())
    monkeypatch.setattr(fixed, "gradients", fail)
    with pytest.raises(RuntimeError, match=r"^something else$"):
        y.sum().backward()


def test_a_nested_backward_pass_is_explained_once():
    error = ALLOCATORS[0]

    class Inner(Differentiable):
        what = "the inner"

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise error

    class Outer(Differentiable):
        what = "the outer"

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            with torch.enable_grad():
                x = ctx.saved_tensors[0].detach().requires_grad_()
                return torch.autograd.grad(Inner.apply(x), x, g)

    with pytest.raises(torch.OutOfMemoryError, match="The backward pass of the inner ran") as caught:
        Outer.apply(torch.ones(3).requires_grad_()).sum().backward()
    assert "the outer" not in str(caught.value)


def test_other_errors_of_a_layer_stay_as_they_are():
    with pytest.raises(InputError, match="channels") as caught:
        GConv(gcn(2, 3))(torch.ones(7, 5), ring(7))
    assert not ran_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 56)  # more than there are addresses
    assert ran_out_of_memory(caught.value)


def test_compilers_see_a_tensor_of_torch():
    def double(x):
        return empty(x, x.shape).copy_(x) * 2

    x = torch.ones(1 << 21)
    assert torch.equal(torch.compile(double, fullgraph=True, backend="aot_eager")(x), x * 2)


class Buffer:
    """A buffer whose size is asked for while others are freed, as by a garbage collection."""

    def __init__(self, size, meanwhile=lambda: None):
        self.size, self.meanwhile = size, meanwhile

    def __len__(self):
        self.meanwhile()
        return self.size


def by_number(size):
    """A look-up that counts on the list being the same when an entry is read again (negative control)."""
    for number in range(len(memory._free_buffers) - 1, -1, -1):
        if size <= len(memory._free_buffers[number]):
            buffer = memory._free_buffers[number]
            del memory._free_buffers[number]
            return buffer


@pytest.mark.usefixtures("fresh")
def test_buffers_that_are_freed_during_a_look_up_do_not_mislead_it(monkeypatch):
    monkeypatch.setattr(memory, "MAX_BYTES_FREE", 3 << 22)
    monkeypatch.setattr(memory, "PAGE_BYTES", 1 << 30)
    small, size = 1 << 20, 1 << 22
    for take, right in ((memory._acquire, True), (by_number, False)):
        memory.release()
        freed = []

        def meanwhile(freed=freed):
            if not freed:
                freed.append(1)
                for _ in range(8):
                    memory._release(Buffer(small))

        wanted = Buffer(size, meanwhile)
        memory._free_buffers.extend([Buffer(small), Buffer(size), wanted, Buffer(small)])
        try:
            found = take(size)
        except IndexError:
            found = None
        mine = found is not None and not any(found is buffer for buffer in memory._free_buffers)
        well = mine and len(found) >= size
        assert well == right
