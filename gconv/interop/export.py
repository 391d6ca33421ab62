"""Export of a GConv as a layer of torch.nn or PyG.

It inverts the descriptions used by `convert`: the weight map of a peer is linear, and autograd computes its transpose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gconv.arguments import checked, kind_of, shown
from gconv.domains import Grid
from gconv.interop.convert import restore
from gconv.interop.converted import Converted
from gconv.interop.layers import fill
from gconv.interop.peer import LeftAlone
from gconv.interop.peers import describe
from gconv.module import GConv
from gconv.spec import GridStructure, OutsideFamily

Make = Callable[..., nn.Module]


def renamed(make: Make, **names: str) -> Make:
    """A constructor whose arguments are named differently from the factory's."""

    def call(**arguments: Any) -> nn.Module:
        return make(**{names.get(key, key): value for key, value in arguments.items()})

    return call


# -- torch ---------------------------------------------------------------------------------------------------------


def depthwise(channels: int, multiplier: int, ndim: int, **arguments: Any) -> nn.Module:
    make = getattr(nn, f"Conv{ndim}d")
    return make(channels, channels * multiplier, groups=channels, **arguments)


def pointwise(in_channels: int, out_channels: int, bias: bool, ndim: int) -> nn.Module:
    return getattr(nn, f"Conv{ndim}d")(in_channels, out_channels, 1, bias=bias)


def padded(make: Make, convolves: bool = False) -> Make:
    """A constructor with torch's padding: one number per axis, the same on both sides."""

    def call(padding: Any, **arguments: Any) -> nn.Module:
        if isinstance(padding, str) and not (convolves and padding in ("same", "valid")):
            raise LeftAlone(f"it does not support padding={padding!r}")
        if isinstance(padding, tuple) and any(isinstance(p, tuple) for p in padding):
            if any(before != after for before, after in padding):
                raise LeftAlone(f"torch's padding is the same on both sides, not {padding}; put a pad layer before it")
            padding = tuple(before for before, _ in padding)
        return make(padding=padding, **arguments)

    return call


def transposed(make: Make) -> Make:
    def call(padding_mode: str, **arguments: Any) -> nn.Module:
        if padding_mode != "zeros":
            raise LeftAlone("torch's transposed convolutions support zero padding only")
        return make(**arguments)

    return call


def averaging(make: Make) -> Make:
    def call(dilation: Any = 1, **arguments: Any) -> nn.Module:
        if dilation not in (1, (1,) * 2, (1,) * 3):
            raise LeftAlone("torch's average pooling has no dilation")
        return make(**arguments)

    return call


def upsample(antialias: bool, ndim: int | None, **arguments: Any) -> nn.Module:
    if antialias:
        raise LeftAlone("torch.nn.Upsample does not support antialias; torch.nn.functional.interpolate does")
    return nn.Upsample(**arguments)


def pad(padding: Any, mode: str, ndim: int) -> nn.Module:
    pairs = padding if isinstance(padding, tuple) else (padding,) * ndim
    flat = [p for pair in reversed(pairs) for p in ((pair, pair) if isinstance(pair, int) else pair)]
    kind = {"zeros": "Zero", "reflect": "Reflection", "replicate": "Replication", "circular": "Circular"}[mode]
    return getattr(nn, f"{kind}Pad{ndim}d")(tuple(flat))


def shuffle(name: str) -> Make:
    def call(ndim: int, **arguments: Any) -> nn.Module:
        if ndim != 2:
            raise LeftAlone(f"torch.nn.{name} supports two axes only")
        return getattr(nn, name)(**arguments)

    return call


def torch_layers() -> dict[str, Make]:
    """Operator -> constructor, with the factory's arguments."""
    layers: dict[str, Make] = {
        "depthwise": padded(depthwise, True),
        "pointwise": pointwise,
        "upsample": upsample,
        "pad": pad,
        "pixel_shuffle": shuffle("PixelShuffle"),
        "pixel_unshuffle": shuffle("PixelUnshuffle"),
    }
    for d in (1, 2, 3):
        layers[f"conv{d}d"] = padded(getattr(nn, f"Conv{d}d"), True)
        layers[f"conv_transpose{d}d"] = padded(transposed(getattr(nn, f"ConvTranspose{d}d")))
        layers[f"avg_pool{d}d"] = padded(averaging(getattr(nn, f"AvgPool{d}d")))
        layers[f"max_pool{d}d"] = padded(getattr(nn, f"MaxPool{d}d"))
        for name in ("avg", "max"):
            layers[f"adaptive_{name}_pool{d}d"] = getattr(nn, f"Adaptive{name.capitalize()}Pool{d}d")
    return layers


# -- PyG -----------------------------------------------------------------------------------------------------------


def pyg_layers() -> dict[str, Make]:
    """Operator -> constructor, with the factory's arguments."""
    from torch_geometric import nn as pyg

    def gcn(normalize: bool, add_self_loops: bool, **arguments: Any) -> nn.Module:
        return pyg.GCNConv(normalize=normalize, add_self_loops=add_self_loops and normalize, **arguments)

    def cheb(lambda_max: Any, **arguments: Any) -> nn.Module:
        if lambda_max != "bound":
            raise LeftAlone(f"PyG's ChebConv takes lambda_max={lambda_max!r} in the call, not as an argument")
        return renamed(pyg.ChebConv, k="K")(**arguments)

    def monet(root_weight: bool, **arguments: Any) -> nn.Module:
        if not root_weight:
            raise LeftAlone("PyG's GMMConv fails with root_weight=False")
        return pyg.GMMConv(**arguments)

    def gin(**arguments: Any) -> nn.Module:
        return pyg.GINConv(nn.Identity(), **arguments)

    def nnconv(dim: int, hidden: int, in_channels: int, out_channels: int, **arguments: Any) -> nn.Module:
        network = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, in_channels * out_channels))
        return pyg.NNConv(in_channels, out_channels, network, **arguments)

    def transformer(bias: bool, root_weight: bool, **arguments: Any) -> nn.Module:
        if bias and not root_weight:
            raise LeftAlone("PyG's TransformerConv has no output bias without root_weight")
        return pyg.TransformerConv(bias=bias, root_weight=root_weight, **arguments)

    def hypergraph(apply_weights: bool, **arguments: Any) -> nn.Module:
        if apply_weights:
            raise LeftAlone("PyG's HypergraphConv uses the weights of hyperedges in the degrees only")
        return pyg.HypergraphConv(**arguments)

    def fagcn(initial: bool, **arguments: Any) -> nn.Module:
        if not initial:
            raise LeftAlone("PyG's FAConv takes x_0 as a separate argument")
        return pyg.FAConv(**arguments)

    def gat(in_channels: int, share_weights: bool, **arguments: Any) -> nn.Module:
        return pyg.GATConv(in_channels if share_weights else (in_channels, in_channels), **arguments)

    def egc(aggregators: tuple[str, ...], **arguments: Any) -> nn.Module:
        return pyg.EGConv(aggregators=list(aggregators), **arguments)

    def directed(aggr: str, alpha: float, root_weight: bool, weighted: bool, bias: bool, **channels: int) -> nn.Module:
        if weighted or aggr == "both":
            raise LeftAlone("PyG's DirGNNConv ignores edge weights, and normalises each direction by one degree")
        inner = bias and not root_weight
        conv = pyg.GCNConv if aggr == "gcn" else pyg.SAGEConv
        options = {} if aggr == "gcn" else {"aggr": aggr}
        return pyg.DirGNNConv(conv(**channels, bias=inner, **options), alpha, root_weight)

    def global_pool(reduce: str) -> nn.Module:
        return getattr(pyg, f"{reduce.capitalize()}Aggregation")()

    return {
        "gcn": gcn,
        "graphconv": pyg.GraphConv,
        "sage": pyg.SAGEConv,
        "simple": pyg.SimpleConv,
        "gin": gin,
        "cluster_gcn": pyg.ClusterGCNConv,
        "le": pyg.LEConv,
        "cheb": cheb,
        "tag": renamed(pyg.TAGConv, k="K"),
        "sgc": renamed(pyg.SGConv, k="K"),
        "ssg": renamed(pyg.SSGConv, k="K"),
        "appnp": renamed(pyg.APPNP, k="K"),
        "lightgcn": pyg.LGConv,
        "mixhop": pyg.MixHopConv,
        "gat": gat,
        "gatv2": pyg.GATv2Conv,
        "supergat": pyg.SuperGATConv,
        "transformer": transformer,
        "agnn": pyg.AGNNConv,
        "monet": monet,
        "nnconv": nnconv,
        "feast": pyg.FeaStConv,
        "gcn2": pyg.GCN2Conv,
        "fagcn": fagcn,
        "relational": pyg.RGCNConv,
        "rgat": pyg.RGATConv,
        "signed": pyg.SignedConv,
        "mf": pyg.MFConv,
        "hypergraph": hypergraph,
        "pdn": pyg.PDNConv,
        "egc": egc,
        "resgated": pyg.ResGatedGraphConv,
        "wl_continuous": pyg.WLConvContinuous,
        "directed": directed,
        "global_pool": global_pool,
    }


# -- biases that a peer treats like a channel ----------------------------------------------------------------------


def row(W: Tensor, values: Tensor | float = 0.0) -> Tensor:
    """W with an additional last row, for the channel of ones."""
    return torch.cat([W, torch.zeros_like(W[..., :1, :]) + values], -2)


def with_bias_rows(layer: GConv) -> dict[str, Tensor | None]:
    """The parameters, with a row for the channel of ones if the peer needs one."""
    own: dict[str, Tensor | None] = dict(layer._parameters)
    W, name, given = layer.weight, layer.spec.name, dict(layer.spec.arguments)
    if name == "gatv2" and given["bias"]:
        assert W is not None
        shift = own["shift"]
        if given["share_weights"]:
            raise LeftAlone("PyG's GATv2Conv with share_weights adds the bias of its attention to the messages, too")
        assert shift is not None and own["target_weight"] is not None
        target = row(own["target_weight"], shift.unsqueeze(1))
        return own | {"weight": row(W), "target_weight": target, "shift": torch.zeros_like(shift)}
    if name == "transformer" and given["bias"]:
        assert W is not None and own["query"] is not None and own["key"] is not None and layer.bias is not None
        assert own["query_bias"] is not None
        heads = given["heads"]
        skip = layer.bias.unflatten(0, (heads if given["concat"] else 1, -1)).unsqueeze(1)
        query = row(own["query"], own["query_bias"].unsqueeze(1))
        return {"weight": torch.cat([row(W[:heads]), row(W[heads:], skip)]), "query": query, "key": row(own["key"])}
    if name == "le" and given["bias"]:
        assert W is not None
        return own | {"weight": row(W)}
    if name == "mf" and given["bias"]:
        assert W is not None and layer.bias is not None
        half = len(W) // 2
        return {"weight": torch.cat([row(W[:half]), row(W[half:], layer.bias)])}
    if name == "resgated":
        assert W is not None and own["key"] is not None and own["query"] is not None
        return own | {"weight": row(W), "key": F.pad(own["key"], (0, 1)), "query": F.pad(own["query"], (0, 1))}
    return own


@checked
def export(layer: nn.Module, library: Literal["torch", "pyg"]) -> nn.Module:
    """A GConv as the equivalent layer of torch.nn or PyG.

    Equation: the same Y = sum_k S_k X W_k + b, computed by the other library.

    Meaning: layers trained with gconv can be used without it.

    Traps: the result has its own copies of the parameters. It is called as usual in its library: PyG takes edge_index,
    two arguments for two signals (gcn2, fagcn), two edge lists (signed). Conventions named in the notes of `convert`
    (such as PyG's weights of improved loops on unweighted graphs) apply here, too.

    Args:
        layer: a GConv, or a layer converted by `convert`, whose original class is restored.
        library: "torch" or "pyg".

    Raises:
        OutsideFamily: if the library has no equivalent layer; the message says why.
        TypeError, ValueError: if it is not a GConv, or the library is unknown.

    >>> from gconv.operators import conv2d
    >>> export(GConv(conv2d(3, 8, 3, padding=1)), "torch")
    Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    if not isinstance(library, str) or library not in ("torch", "pyg"):
        raise ValueError(f"library must be 'torch' or 'pyg', but it is {shown(library)}.")
    if isinstance(layer, Converted):
        return restore(layer)
    if not isinstance(layer, GConv):
        raise TypeError(f"export takes a GConv, but {kind_of(layer)} was given.")
    name = {"torch": "torch.nn", "pyg": "PyG"}[library]
    layers = torch_layers() if library == "torch" else pyg_layers()
    make = layers.get(layer.spec.name)
    if make is None:
        raise OutsideFamily(f"{name} has no layer equivalent to {layer.spec!r}.")
    try:
        if layer.spec.sides is not None:
            raise LeftAlone("its matrices of sources and targets have different sizes there")
        made = make(**dict(layer.spec.arguments))
        _fill(made, layer)
    except (LeftAlone, TypeError, ValueError, AssertionError) as error:
        raise OutsideFamily(f"{name} has no layer equivalent to {layer.spec!r}: {str(error).rstrip('.')}.") from None
    return made.train(layer.training)


def _fill(made: nn.Module, layer: GConv) -> None:
    """Copy the weights of a GConv to a peer. Raises: LeftAlone."""
    like = next(layer.parameters(), None)
    if like is not None:
        made.to(like.device, like.dtype)
    peer, spec = describe(made)
    structure = layer.spec.structure
    if structure.domain == "grid":
        assert isinstance(structure, GridStructure)
        spec, _ = peer.settle(made, spec, Grid((1,) * structure.ndim))  # nn.Upsample has no number of axes
        if spec.structure != structure:
            raise LeftAlone("its geometry differs there")
    fill(made, peer, {key: W.detach() for key, W in with_bias_rows(layer).items() if W is not None})
