"""Two sets of nodes: every law on rectangular domains, PyG's layers on pairs, and what is refused."""

import pytest
import torch

from gconv import Bipartite
from gconv.operators import (
    agnn,
    feast,
    gat,
    gatv2,
    gcn,
    gin,
    graphconv,
    le,
    mf,
    monet,
    nnconv,
    relational,
    resgated,
    rgat,
    sage,
    simple,
    spline,
    supergat,
    transformer,
    wl_continuous,
)  # fmt: skip
from gconv.spec import Sample
from gconv.testing import LAWS, law_transforms


def _carrying(index, sizes):
    e = index.shape[1]
    attr = torch.stack([torch.linspace(0, 1, e), torch.linspace(1, 0, e) ** 2], 1).double()
    weight = torch.linspace(0.25, 1.75, e, dtype=torch.float64)
    return Bipartite(index, sizes, edge_weight=weight, edge_attr=attr, edge_type=torch.arange(e) % 3)


def wide():
    """More sources than targets, one of each without edges, a double edge, edges i -> i."""
    return _carrying(torch.tensor([[0, 1, 1, 4, 3, 2, 2, 4, 4], [0, 1, 0, 1, 2, 2, 2, 0, 0]]), (6, 4))


def tall():
    """More targets than sources, two targets without edges."""
    return _carrying(torch.tensor([[0, 1, 1, 2, 0, 0], [1, 1, 4, 3, 3, 0]]), (3, 5))


SPECS = [
    simple(), simple("mean"), simple("max"), simple("sum", "cat"), simple("mean", "sum"),
    sage(2, 3), sage(2, 3, "max"), sage(2, 3, root_weight=False), sage((2, 1), 3, "sum"),
    graphconv(2, 3), graphconv((1, 2), 2, "mean"), gcn(2, 3, normalize=False),
    gin(0.5), gin(0.5, True), wl_continuous(), le(2, 3), mf(2, 3, max_degree=2),
    relational(2, 3, 3), relational(2, 3, 3, num_bases=2), relational(2, 2, 3, num_blocks=2),
    relational(2, 3, 3, aggr="max", root_weight=False),
    nnconv(2, 3, 2, 2), monet(2, 3, 2, 2), spline(2, 3, 2, 3), spline(2, 2, 2, 3, root_weight=False),
    resgated(2, 3), feast(2, 3, 2), feast(2, 3, 2, add_self_loops=False),
    transformer(2, 3, 2), transformer((2, 1), 3, 2, concat=False), transformer(2, 2, root_weight=False),
    gat(2, 3, 2), gat(2, 3, 2, residual=True, edge_dim=2, share_weights=False),
    gat(2, 3, 2, concat=False, residual=True, add_self_loops=False),
    gatv2(2, 3, 2, residual=True, edge_dim=2), gatv2(2, 3, 2, share_weights=True, concat=False),
    agnn(), supergat(2, 3, 2), rgat(2, 3, 3, heads=2),
]  # fmt: skip
QUICK = [law for law in LAWS.values() if law is not law_transforms]


def samples(spec):
    sides = spec.sides or (2, 2)
    return [Sample(spec, domain, max(sides)) for domain in (wide, tall)]


@pytest.mark.parametrize("law", QUICK, ids=lambda law: law.__name__)
@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_laws_hold_between_two_sets(spec, law):
    if spec.sides is not None and law.__name__ in ("law_receptive_field", "law_linearity"):
        pytest.skip("a stacked signal of random numbers has no channels that are filled up with zeros")
    for sample in samples(spec):
        law(sample, torch.float64)
