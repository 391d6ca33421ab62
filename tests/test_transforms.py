"""Graph layers under torch.func and forward mode, beyond what `law_transforms` asks of every operator."""

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from gconv import GConv, Graph, constant
from gconv.basis import Pattern, Taps
from gconv.kernels import CSR, segment_max, spmm
from gconv.operators import cheb, gat, gcn, global_pool, sage
from gconv.operators.shapes import messy
from gconv.testing import assert_close

DOUBLE = torch.float64
EDGES = torch.tensor([[0, 1, 1, 2, 0, 3, 3], [1, 0, 2, 1, 1, 3, 0]])
SPECS = [gcn(3, 2), gat(3, 2, heads=2), cheb(3, 2, k=3), sage(3, 2, aggr="max")]


def layer_of(spec):
    return GConv(spec, dtype=DOUBLE)


@pytest.fixture(params=SPECS, ids=lambda spec: spec.name)
def layer(request):
    return layer_of(request.param)


def test_jacobians_and_hessians(layer):
    graph, x = Graph(EDGES), torch.randn(4, 3, dtype=DOUBLE)
    want = torch.autograd.functional.jacobian(lambda x: layer(x, graph), x)
    assert_close("jacrev", jacrev(lambda x: layer(x, graph))(x), want, 1e-10)
    assert_close("jacrev in chunks", jacrev(lambda x: layer(x, graph), chunk_size=3)(x), want, 1e-10)
    assert_close("jacfwd", jacfwd(lambda x: layer(x, graph))(x), want, 1e-10)
    _, pull = vjp(lambda x: layer(x, graph), x)
    assert_close("vjp", pull(torch.ones(want.shape[:2], dtype=DOUBLE))[0], want.sum((0, 1)), 1e-10)

    def energy(x):
        return layer(x, graph).square().sum()

    second = torch.autograd.functional.hessian(energy, x)
    assert_close("hessian", hessian(energy)(x), second, 1e-9)
    assert_close("jacrev of jacrev", jacrev(jacrev(energy))(x), second, 1e-9)
    assert_close("jvp of grad", jvp(grad(energy), (x,), (x,))[1], torch.einsum("abcd,cd->ab", second, x), 1e-9)


def test_chunks_and_ensembles(layer):
    graph, x = Graph(EDGES), torch.randn(5, 4, 3, dtype=DOUBLE)
    theta = {name: torch.stack([p.detach(), 2 * p.detach(), -p.detach()]) for name, p in layer.named_parameters()}
    each = [[functional_call(layer, {n: t[k] for n, t in theta.items()}, (one, graph)) for one in x] for k in range(3)]
    want = torch.stack([torch.stack(row) for row in each])
    run = vmap(lambda theta, x: functional_call(layer, theta, (x, graph)), in_dims=(None, 0), chunk_size=2)
    assert_close("ensemble", vmap(run, in_dims=(0, None))(theta, x), want, 1e-10)
    inner = vmap(lambda theta, x: functional_call(layer, theta, (x, graph)), in_dims=(0, None))
    assert_close("batched signals", inner(theta, x), want, 1e-10)
    assert_close(
        "another axis", vmap(lambda x: layer(x, graph), 1, 2)(x.movedim(0, 1)).movedim(2, 0), layer(x, graph), 1e-10
    )


@pytest.mark.parametrize("transform", [grad, vmap, lambda f: lambda x: jvp(f, (x,), (x,))], ids=["grad", "vmap", "jvp"])
def test_an_edge_index_first_read_in_a_transform_is_kept_plain(layer, transform):
    edges, x = EDGES.clone(), torch.randn(4, 3, dtype=DOUBLE)
    transform(lambda x: layer(x, edges).sum())(x[None] if transform is vmap else x)
    assert_close("plain", layer(x, edges), layer(x, Graph(EDGES)), 1e-12)
    weight = torch.rand(7, dtype=DOUBLE)
    transform(lambda x: layer(x, edges, edge_weight=weight).sum())(x[None] if transform is vmap else x)
    assert_close("weighted", layer(x, edges, edge_weight=weight), layer(x, Graph(EDGES, edge_weight=weight)), 1e-12)


def test_a_constant_signal_caches_nothing_of_a_transform():
    layer, graph, x = layer_of(gcn(3, 2)), Graph(EDGES), constant(torch.randn(4, 3, dtype=DOUBLE))
    want = layer(x.clone(), graph)
    weight = layer.weight.detach()
    found = grad(lambda W: functional_call(layer, {"weight": W}, (x, graph)).sum())(weight)
    assert_close("plain", layer(x, graph), want, 1e-12)
    again = torch.autograd.grad(layer(x, graph).sum(), layer.weight)[0]
    assert_close("gradient", found, again, 1e-12)


def test_edge_weights(layer):
    x, weights = torch.randn(4, 3, dtype=DOUBLE), 0.5 + torch.rand(2, 7, dtype=DOUBLE)

    def run(weight):
        return layer(x, Graph(EDGES, edge_weight=weight))

    assert_close("vmap", vmap(run)(weights), torch.stack([run(w) for w in weights]), 1e-12)
    want = torch.autograd.functional.jacobian(run, weights[0])
    assert_close("jacrev", jacrev(run)(weights[0]), want, 1e-10)
    assert_close("jacfwd", jacfwd(run)(weights[0]), want, 1e-10)


def test_ties_share_the_derivative_of_a_maximum():
    csr = CSR.build(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 3]), 3, 4)
    x = torch.tensor([[2.0], [2.0], [-torch.inf], [0.0]], dtype=DOUBLE)
    values = torch.ones(4, dtype=DOUBLE)
    y, moved = jvp(lambda x: segment_max(csr, values, x), (x,), (torch.tensor([[1.0], [3], [5], [7]], dtype=DOUBLE),))
    assert_close("value", y, torch.tensor([[2.0], [0], [0]], dtype=DOUBLE), 0)
    tracked = x.clone().requires_grad_()
    want = torch.autograd.grad(segment_max(csr, values, tracked).sum(), tracked)[0]
    assert_close("gradient", grad(lambda x: segment_max(csr, values, x).sum())(x), want, 0)
    assert_close("tangent", moved, torch.tensor([[2.0], [3.5], [0]], dtype=DOUBLE), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("c", [0, 1, 3, 17, 33])
def test_widths_types_and_empty_patterns(dtype, c):
    tol = 0.02 if dtype == torch.bfloat16 else 1e-6

    def check(row, col, m, n):
        csr = CSR.build(torch.tensor(row).long(), torch.tensor(col).long(), m, n)
        values, x = torch.randn(len(row)).to(dtype), torch.randn(2, n, c).to(dtype)
        got, want = vmap(lambda x: spmm(csr, values, x))(x), spmm(csr, values, x)
        assert got.dtype == dtype
        assert_close("vmap", got, want, tol)
        assert_close("jvp", jvp(lambda v: spmm(csr, v, x), (values,), (values,))[1], want, tol)

    check([0, 2, 0, 2], [1, 0, 1, 1], 3, 2)
    check([], [], 3, 2)
    check([], [], 0, 0)


def test_what_was_built_in_a_transform_is_used_by_plain_calls():
    tap, row, col = torch.zeros(4, dtype=torch.int64), torch.tensor([2, 0, 0, 1]), torch.tensor([0, 1, 1, 2])
    pattern, x = Pattern((1, 3, 3), tap, row, col), torch.randn(3, 2, dtype=DOUBLE)
    S = Taps(pattern, torch.rand(4, dtype=DOUBLE))
    jvp(lambda x: S.T.expand(S.expand(x)), (x,), (x,))
    assert_close("S", S.expand(x), Taps(Pattern((1, 3, 3), tap, row, col), S.values).expand(x), 0)
    held = [csr for csr in pattern._memo.values()]
    assert held and not any(torch._C._functorch.is_functorch_wrapped_tensor(t) for csr in held for t in csr.tensors)
    learned = Taps(pattern, S.values)
    vmap(lambda v: Taps(pattern, v).expand(x))(torch.rand(2, 4, dtype=DOUBLE))
    grad(lambda v: Taps(pattern, v).T.expand(x).sum())(S.values)
    assert_close("learned", learned.expand(x), S.expand(x), 0)


@pytest.mark.slow
def test_compiled_transforms():
    layer, graph, x = layer_of(gcn(3, 2)), messy(), torch.randn(6, 3, dtype=DOUBLE)
    layer(x, graph)
    run = torch.func.vmap(lambda x: layer(x, graph))
    many = torch.stack([x, -x])
    assert_close("vmap", torch.compile(run, backend="aot_eager")(many), run(many), 1e-12)


def test_pooling():
    layer, x = GConv(global_pool("max")), torch.randn(6, 3, dtype=DOUBLE)
    assert_close("jvp", jvp(lambda x: layer(x, messy()), (x,), (x,))[1], layer(x, messy()), 1e-12)
