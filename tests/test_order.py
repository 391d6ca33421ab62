"""Node order: found while products run, and not a bit of any of them depends on it."""

import weakref

import numpy as np
import pytest
import torch

from gconv import GConv, Graph
from gconv.basis import taps
from gconv.kernels import CSR, attention, clenshaw, heads_spmm, native, order, spmm, spmm_rows, terms
from gconv.kernels.sparse import rows_of, unrecorded
from gconv.lowering import fixed
from gconv.operators import gcn

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
WIDTHS = [1, 2, 3, 4, 17, 33, 64, 130, 300]
pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
LEVELS = range(native.LEVEL + 1)


def ring(n=600, shuffled=True, seed=0):
    """Everyone's four neighbours on a ring, under other names; the first and the last twenty have none."""
    generator = torch.Generator().manual_seed(seed)
    name = torch.randperm(n, generator=generator) if shuffled else torch.arange(n)
    place = torch.arange(20, n - 20)
    row = place.repeat_interleave(4)
    col = (row + torch.tensor([-2, -1, 1, 2]).repeat(len(place))).clamp(20, n - 21)
    return CSR.build(name[row], name[col], n, n)


def rectangular(seed=1):
    """300 rows of 500 columns, drawn at random: unsymmetric, with repeated entries and empty rows."""
    generator = torch.Generator().manual_seed(seed)
    return CSR.build(*(torch.randint(limit, (900,), generator=generator) for limit in (300, 500)), 300, 500)


def put(csr, place=None):
    """A schedule in this order of the rows, reverse Cuthill-McKee without one, in use from now on."""
    crow, col = csr.crow.numpy(), csr.col.numpy()
    place = order.reverse_cuthill_mckee(crow, col, csr.shape[1]) if place is None else place
    schedule = order.scheduled(crow, col, place)
    order._STATES[csr.col] = order.State(weakref.ref(csr.crow), schedule=schedule, settled=True)
    return schedule


@pytest.fixture
def always(monkeypatch):
    """Any table counts as larger than the cache, and any product as large enough for two threads."""
    monkeypatch.setattr(order, "MIN_BYTES_X", 0)
    monkeypatch.setattr(native, "SERIAL", 0)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def both(run):
    """The result with the rows as they come, and by the schedule."""
    with order.automatic(False):
        plain = run()
    return plain, run()


@pytest.mark.sampled(4)
@pytest.mark.usefixtures("always", "threads")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("make", [ring, rectangular])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_schedule_changes_no_bit_of_a_product(make, dtype, level, monkeypatch):
    monkeypatch.setattr(native, "LEVEL", level)
    csr = make()
    put(csr)
    values = torch.randn(len(csr.col), dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
    for width in WIDTHS:
        for batch in ((), (2,)):
            x = torch.randn(*batch, csr.shape[1], width).to(dtype)
            plain, slots = both(lambda x=x: spmm(csr, values, x))
            assert torch.equal(plain, slots), width
            z, w = torch.randn(2, *batch, csr.shape[0], width).to(dtype)
            arguments = csr.crow, csr.col, values, x, z, w, (0.3, -1.7, 0.9)
            plain, slots = both(lambda a=arguments: native.spmm(*a))
            assert torch.equal(plain, slots), width


@pytest.mark.sampled(4)
@pytest.mark.usefixtures("always", "threads")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_schedule_changes_no_bit_of_a_product_of_heads(dtype, level, monkeypatch):
    monkeypatch.setattr(native, "LEVEL", level)
    csr = rectangular()
    put(csr)
    put(csr.T)
    for heads in (1, 3):
        values = torch.randn(len(csr.col), heads, dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
        for width in WIDTHS[:7]:
            for transposed in (False, True):
                x = torch.randn(2, csr.shape[1 - transposed], heads, width).to(dtype)
                for together in (False, True):
                    plain, slots = both(lambda x=x, a=together, b=transposed, v=values: heads_spmm(csr, v, x, a, b))
                    assert torch.equal(plain, slots), (heads, width, transposed, together)


@pytest.mark.sampled(4)
@pytest.mark.usefixtures("always", "threads")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("dropout", [None, (0.3, torch.tensor([4]))])
def test_a_schedule_changes_no_bit_of_attention(dtype, dropout, level, monkeypatch):
    monkeypatch.setattr(native, "LEVEL", level)
    n = 300
    drawn = torch.cat([torch.randint(n, (2, 900)), torch.stack([torch.full((800,), 7), torch.randint(n, (800,))])], 1)
    for csr in (ring(), CSR.build(*drawn, n, n), CSR.build(*drawn.flip(0), n, n)):
        put(csr)
        if not csr.self_transposed:
            put(csr.T)
        for heads, width in ((1, 3), (8, 8), (3, 17)):
            z, p, q = (
                torch.randn(*size, heads, width, dtype=dtype, requires_grad=True) for size in (csr.shape[:1], (), ())
            )
            g = torch.randn_like(z)

            def run(csr=csr, z=z, p=p, q=q, g=g):
                y = attention(csr, z, p, q, 0.2, dropout)
                return y, *torch.autograd.grad(y, (z, p, q), g)

            for plain, slots in zip(*both(run), strict=True):
                assert torch.equal(plain, slots), (heads, width)


def test_attention_goes_by_the_schedule(monkeypatch):
    """The control: a wrong one is seen in the result, forward and backward."""
    monkeypatch.setattr(order, "MIN_BYTES_X", 0)
    csr = ring()
    schedules = put(csr), put(csr.T)
    z, p, q = (torch.randn(*size, 2, 3, requires_grad=True) for size in (csr.shape[:1], (), ()))
    want = attention(csr, z, p, q, 0.2)
    gradient = torch.autograd.grad(want.sum(), z, retain_graph=True)[0]
    for schedule in schedules:
        schedule.place[:] = schedule.place[::-1].copy()
    assert not torch.equal(attention(csr, z, p, q, 0.2), want)
    assert not torch.equal(torch.autograd.grad(want.sum(), z)[0], gradient)


@pytest.mark.usefixtures("always")
def test_a_broken_schedule_is_seen():
    csr, x = ring(), torch.randn(600, 17)
    values, names = torch.randn(len(csr.col)), np.random.default_rng(0).permutation(600).astype(np.int32)
    schedule = put(csr, names)
    plain, slots = both(lambda: spmm(csr, values, x))
    assert torch.equal(plain, slots)
    for broken in (schedule.place, schedule.start, schedule.col):
        kept = broken.copy()
        broken[:] = np.sort(broken)
        assert not torch.equal(plain, spmm(csr, values, x))
        broken[:] = kept
    assert torch.equal(plain, spmm(csr, values, x))


@pytest.mark.usefixtures("always")
def test_gradients_recurrences_and_the_short_way_keep_their_bits():
    csr = ring()
    put(csr)
    put(csr.T)
    values, x = torch.randn(len(csr.col), requires_grad=True), torch.randn(600, 17, requires_grad=True)

    def gradients():
        y = spmm(csr, values, x)
        first = torch.autograd.grad(y.square().sum(), (values, x), create_graph=True)
        return torch.cat([g.flatten() for g in (*first, *torch.autograd.grad(first[1].square().sum(), (values, x)))])

    fixed, rows = values.detach(), ((0.5, 0.1, 0.0), (1.0, 0.0, 0.7))
    for run in (
        gradients,
        lambda: unrecorded(csr, fixed, x.detach()),
        lambda: terms(csr, fixed, x.detach(), rows),
        lambda: clenshaw(csr, fixed, x.detach().unsqueeze(1).repeat(1, 3, 1), rows),
        lambda: torch.compile(lambda s: spmm(csr, fixed, s), fullgraph=True, backend="aot_eager")(x.detach()),
        lambda: torch.func.vmap(lambda s: spmm(csr, fixed, s))(x.detach().expand(3, 600, 17)),
    ):
        plain, slots = both(run)
        assert torch.equal(plain, slots)


def state_after(csr, products, width=64):
    """What is known of a pattern after so many products."""
    values, x = torch.ones(len(csr.col)), torch.ones(csr.shape[1], width)
    for _ in range(products):
        spmm(csr, values, x)
    return order.known(csr.col)


@pytest.fixture
def small(monkeypatch):
    """A cache of 64 rows of 64 channels, and loss as for a large table; an order costs what some products lose."""
    monkeypatch.setattr(order, "MIN_BYTES_X", 1 << 14)
    monkeypatch.setattr(order, "WINDOW_BYTES", 1 << 14)
    monkeypatch.setattr(order, "miss_seconds", lambda read, row, table: read * 1e-9)
    monkeypatch.setattr(order, "SECONDS_PER_ENTRY", 1e-6)
    monkeypatch.setattr(order, "SECONDS_PER_ROW", 0.0)


@pytest.mark.usefixtures("small")
def test_an_order_is_found_once_products_have_lost_what_it_costs():
    csr = ring()
    assert state_after(csr, 1).schedule is None and not order.known(csr.col).settled
    state = state_after(csr, 9)
    assert state.settled and state.schedule is not None
    assert state.after < 0.5 * state.before, (state.before, state.after)
    assert "reverse Cuthill-McKee" in str(state)


@pytest.mark.usefixtures("small")
def test_what_is_well_ordered_or_cannot_be_stays_as_it_comes():
    ordered = state_after(ring(shuffled=False), 20)
    assert ordered.settled and ordered.schedule is None and ordered.after is None, "it was not even tried"
    generator = torch.Generator().manual_seed(0)
    random = CSR.build(*torch.randint(600, (2, 6000), generator=generator), 600, 600)
    state = state_after(random, 20)
    assert state.settled and state.schedule is None and state.after > order.MAX_REMAINING * state.before


@pytest.mark.usefixtures("small")
def test_small_tables_switched_off_products_and_slices_count_for_nothing():
    csr = ring()
    state_after(csr, 20, width=4)
    with order.automatic(False):
        state_after(csr, 20)
    assert order.known(csr.col) is None
    for _ in range(20):
        spmm_rows(csr, torch.ones(len(csr.col)), torch.ones(600, 64), 10, 40)
    assert order.known(csr.col) is None
    assert state_after(csr, 20).schedule is not None


@pytest.mark.usefixtures("small")
def test_what_is_known_goes_with_the_pattern():
    csr = ring()
    state = weakref.ref(state_after(csr, 20))
    assert state() is not None
    del csr
    assert state() is None


@pytest.mark.parametrize("make", [ring, rectangular])
def test_the_order_holds_every_row_once(make):
    csr = make()
    for pattern in (csr, csr.T):
        place = order.reverse_cuthill_mckee(pattern.crow.numpy(), pattern.col.numpy(), pattern.shape[1])
        assert np.array_equal(np.sort(place), np.arange(pattern.shape[0]))


def test_a_layer_goes_in_order_both_ways_and_its_plan_says_so(monkeypatch, threads):
    """Also where rows are made a few at a time; the sums over all rows keep their order."""
    monkeypatch.setattr(order, "MIN_BYTES_X", 0)
    monkeypatch.setattr(order, "miss_seconds", lambda *read: 1.0)
    monkeypatch.setattr(order, "WINDOW_BYTES", 1 << 12)
    monkeypatch.setattr(fixed, "MIN_BYTES_ROWS", 0)
    monkeypatch.setattr(taps, "MAX_BYTES_PREPARED", 0)
    csr, layer = ring(2000), GConv(gcn(16, 16))
    row = rows_of(csr.crow, csr.col)
    graph = Graph(torch.stack([csr.col.long(), row]), 2000)
    x = torch.randn(2000, 16, requires_grad=True)

    def step():
        y = layer(x, graph)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    assert "rows" not in str(layer.plan(x, graph)).splitlines()[-1]
    for lowering in ("sparse:aggregate", "sparse:transform"):
        with order.automatic(False):
            want = layer(x, graph, lowering=lowering)
        assert torch.equal(layer(x, graph, lowering=lowering), want)
    came, ordered = both(step)
    assert all(map(torch.equal, came, ordered))
    assert str(layer.plan(x, graph)).splitlines()[-1].startswith("rows by reverse Cuthill-McKee")
