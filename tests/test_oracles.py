"""Every operator against torch, PyG or a formula: value and gradients, on its samples and on random ones."""

import pytest
import torch
from conftest import TOL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import ORACLES, RANDOM, WITHOUT, graphs
from torch_geometric import nn as pyg

from gconv import GConv, Graph, list_operators
from gconv.operators import cheb, gcn
from gconv.spec import operator
from gconv.testing import Case, assert_close

# defined for symmetric weights alone, where the derivative in one direction of an edge is a matter of convention
NO_EDGE_WEIGHTS = {"spectral", "cayley", "wavelet", "lanczos"}


def check(sample, dtype):
    case, name = Case.of(sample, dtype), sample.spec.name
    domain, leaves = case.domain, {"x": case.x, **dict(case.layer.named_parameters())}
    case.x.requires_grad_()
    if isinstance(domain, Graph) and domain.edge_weight is not None and name not in NO_EDGE_WEIGHTS:
        leaves["edge_weight"] = domain.edge_weight.clone().requires_grad_()
        tensors = {key: getattr(domain, key) for key in ("edge_attr", "edge_type", "pos", "ptr")}
        domain = Graph(domain.edge_index, domain.size, edge_weight=leaves["edge_weight"], **tensors)
    got, want = case.layer(case.x, domain), ORACLES[name](case.layer, domain, case.x)
    assert_close(f"{sample.name} against its oracle", got, want, TOL[dtype]["rtol"])
    dy = torch.randn(want.shape, dtype=dtype)
    kwargs = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    for leaf, g, w in zip(
        leaves,
        *(torch.autograd.grad((y * dy).sum(), list(leaves.values()), **kwargs) for y in (got, want)),
        strict=True,
    ):
        assert_close(f"{sample.name} on {domain}: gradient in {leaf} against its oracle", g, w, TOL[dtype]["rtol"])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", list_operators())
def test_operator_equals_its_oracle_on_its_samples(name, dtype):
    for sample in operator(name).samples():
        check(sample, dtype)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", list(RANDOM))
@settings(max_examples=3, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_operator_equals_its_oracle_on_random_specs(name, data):
    try:
        sample = RANDOM[name](data.draw)
    except ValueError as refused:  # a geometry that is refused is refused in one sentence
        assert str(refused).endswith(".")
        return
    check(sample, torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RANDOM))
@settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_operator_equals_its_oracle_on_many_random_specs(name, data):
    test_operator_equals_its_oracle_on_random_specs.hypothesis.inner_test(name, data)


def test_every_operator_has_an_oracle_or_a_reason():
    assert set(ORACLES) | set(WITHOUT) == set(list_operators())
    assert set(RANDOM) == set(ORACLES)
    assert not set(ORACLES) & set(WITHOUT) and all(len(reason) > 20 for reason in WITHOUT.values())


@settings(max_examples=20, derandomize=True, deadline=None, database=None)
@given(graph=graphs())
def test_gcn_matrix_is_pygs_on_any_graph(graph):
    x = torch.eye(graph.size, dtype=torch.float64)
    w = graph.edge_weight
    layer, other = (
        GConv(gcn(graph.size, 1, bias=False), dtype=torch.float64),
        pyg.GCNConv(graph.size, 1, bias=False).double(),
    )
    with torch.no_grad():
        other.lin.weight.copy_(layer.weight[0].t())
    assert_close(f"gcn on {graph}", layer(x, graph), other(x, graph.edge_index, w), 1e-12)


def test_pyg_divides_by_zero_where_we_fall_back():
    """ChebConv(normalization=None) on a graph without edges: lmax = 0 and PyG returns NaN; ours takes lmax = 1."""
    empty, x = torch.empty(2, 0, dtype=torch.int64), torch.ones(3, 2)
    assert GConv(cheb(2, 2, k=3, normalization=None))(x, Graph(empty, 3)).isfinite().all()
    assert pyg.ChebConv(2, 2, 3, normalization=None)(x, empty).isnan().any()
