"""Gated edges: one gate per edge and channel."""

from __future__ import annotations

from dataclasses import dataclass

from gconv.basis import Basis, SharedTaps, Stack, widened
from gconv.call import Call
from gconv.domains import Edges
from gconv.laplacian import itself, pattern
from gconv.mixing import Heads
from gconv.mixing.base import check_channels
from gconv.operators.shapes import Channels, messy, ring, widest
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Gates(GraphStructure):
    """One tap per output channel, sigmoid(key_c . x_i + query_c . x_j + gate_c); with `root` the node itself, too."""

    i: int
    o: int
    root: bool

    kind, many = "adaptive", True
    reads = "both"

    @property
    def taps(self) -> int:
        return self.o + self.root

    def parameters(self) -> dict[str, Parameter]:
        bound = self.i**-0.5
        matrix, vector = Parameter((self.o, self.i), "uniform", bound), Parameter((self.o,), "uniform", bound)
        return {"key": matrix, "query": matrix, "gate": vector}

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Basis:
        one, _ = pattern(domain)
        key, query = domain.at_targets(call.x) @ theta["key"].t() + theta["gate"], call.x @ theta["query"].t()
        S = SharedTaps(one, one.ends(widened(key), widened(query)).sigmoid().to(key.dtype))
        return Stack((S, itself(domain, call.x.dtype))) if self.root else S


@register(
    samples=lambda resgated: [
        Sample(resgated(3, 2), ring, 3),
        Sample(resgated(2, 3), messy, 2),
        Sample(resgated(2, 2, root_weight=False, bias=False), messy, 2),
    ],
    citation="Bresson and Laurent, Residual Gated Graph ConvNets, 2017",
)
def resgated(in_channels: Channels, out_channels: int, root_weight: bool = True, bias: bool = True) -> Parts:
    """The gated graph convolution: each message is multiplied channel-wise by a gate computed from both end points.

    Equation: y_i = sum over edges j -> i of sigmoid(K x_i + Q x_j + g) * V^T x_j + W_root^T x_i + b, * element-wise.

    Meaning: attention without a softmax and with as many heads as channels.

    In the family: one tap per output channel, adaptive, and the identity; W by heads of one channel. Linear only when
    frozen: `layer.at(graph, x=x0)`.

    Traps: PyG's ResGatedGraphConv has a bias in its values, which the gates multiply and a single b cannot express;
    append a channel of ones to x, and it is the last row of V. PyG's key and query biases are summed in g. Edge weights
    are ignored. With edge_dim PyG's values have a term that does not depend on x, which is outside the family.

    Args: PyG's ResGatedGraphConv's.

    Shapes: x (*b, n, i) -> (*b, n, o). key and query (o, i) and gate (o) are PyG's lin_key and lin_query; the weight
    (o, i, 1) is its lin_value, followed by lin_skip.
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`; in_channels may be a pair (i_source, i_target).

    Raises:
        ValueError: if a number of channels is not positive.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(resgated(3, 2))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    i = widest(in_channels)
    check_channels(i, out_channels)
    mixing = Heads(out_channels, i, 1, root_weight)
    return Gates(i, out_channels, root_weight), mixing, bias
