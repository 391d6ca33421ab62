"""Each mistake ends in one clear error, before any number is produced."""

import pytest
import torch
from torch import nn
from torch_geometric.data import Data

import gconv
from gconv import (
    Bipartite,
    GConv,
    Graph,
    Grid,
    Inadmissible,
    InputError,
    OperatorSpec,
    OutsideFamily,
    analysis,
    grid_graph,
    list_operators,
)
from gconv.domains import read_graph
from gconv.operators import (
    appnp,
    avg_pool2d,
    cheb,
    conv1d,
    conv2d,
    conv_transpose2d,
    gat,
    gcn,
    global_pool,
    graphconv,
    max_pool2d,
    monet,
    sage,
    selection,
    sgc,
    spectral,
    tag,
)
from gconv.operators.shapes import messy, ring
from gconv.spec import operator

INDEX = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
X = torch.zeros(3, 2)
IMAGE = torch.zeros(1, 2, 6, 6)
NET = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU())


def edges(**tensors):
    return lambda: Graph(INDEX, 3, **tensors)


def layer(spec, *args, **kwargs):
    return lambda: GConv(spec)(*args, **kwargs)


GRAPHS = [
    ("a list", lambda: Graph([[0, 1], [1, 0]]), TypeError, "edge_index must be a torch tensor of shape"),
    ("float", lambda: Graph(INDEX.float()), TypeError, "must be an integer tensor, but its dtype is torch.float32"),
    ("bool", lambda: Graph(INDEX.bool()), TypeError, "must be an integer tensor, but its dtype is torch.bool"),
    ("transposed", lambda: Graph(INDEX.t()), ValueError, r"shape \(2, e\), row 0 the sources.*shape is \(4, 2\)"),
    ("flat", lambda: Graph(INDEX[0]), ValueError, r"shape \(2, e\)"),
    ("negative", lambda: Graph(INDEX - 1), ValueError, "must not be negative, but it contains node -1"),
    ("out of range", lambda: Graph(INDEX, 2), ValueError, "names node 2, but the graph has 2 nodes, numbered 0 to 1"),
    (
        "negative size",
        lambda: Graph(torch.empty(2, 0, dtype=torch.int64), -3),
        ValueError,
        "size must not be negative",
    ),
    (
        "NaN weight",
        edges(edge_weight=torch.tensor([1, 1, float("nan"), 1])),
        ValueError,
        "edge_weight must be finite",
    ),
    (
        "infinite weight",
        edges(edge_weight=torch.tensor([1, 1, float("inf"), 1])),
        ValueError,
        "edge_weight must be finite",
    ),
    (
        "too few weights",
        edges(edge_weight=torch.ones(3)),
        ValueError,
        "one number per edge, 4 in all, but its shape is",
    ),
    (
        "weights on another device",
        edges(edge_weight=torch.ones(4, device="meta")),
        ValueError,
        "on meta, but edge_index is on cpu",
    ),
    ("weights in a list", edges(edge_weight=[1.0] * 4), TypeError, "edge_weight must be a torch tensor, but a list"),
    ("NaN attribute", edges(edge_attr=torch.full((4, 2), float("nan"))), ValueError, "edge_attr must be finite"),
    ("attribute shape", edges(edge_attr=torch.ones(2, 4)), ValueError, "one row per edge, 4 in all"),
    (
        "float labels",
        edges(edge_type=torch.zeros(4)),
        TypeError,
        "edge_type contains labels and must be an integer tensor",
    ),
    (
        "negative labels",
        edges(edge_type=torch.tensor([0, -1, 0, 0])),
        ValueError,
        "edge_type must not be negative, but it contains the label -1",
    ),
    ("positions", edges(pos=torch.zeros(4, 2)), ValueError, "pos must have one row per node, 3"),
    ("NaN position", edges(pos=torch.full((3, 2), float("nan"))), ValueError, "pos must be finite"),
    ("ptr", edges(ptr=(0, 2)), ValueError, "ptr must increase from 0 to 3"),
    ("falling ptr", edges(ptr=(0, 3, 2, 3)), ValueError, "ptr must increase from 0 to 3"),
    ("grid without axes", lambda: Grid(()), ValueError, "one to three axes"),
    ("grid with an empty axis", lambda: Grid((3, 0)), ValueError, "at least one site"),
    ("neighbours", lambda: grid_graph((3, 3), 6), ValueError, "neighbours must be 4 or 8 on a 2-D grid, but it is 6"),
    ("PyG without edges", lambda: read_graph(Data(x=X), 3), ValueError, "no edge_index"),
]

CALLS = [
    ("no graph", layer(gcn(2, 2), X), TypeError, r"gcn works on graphs: call layer\(x, graph\)"),
    ("a grid for a graph", layer(gcn(2, 2), X, Grid((3,))), TypeError, "needs a graph: a gconv.Graph, an edge_index"),
    ("a string for a graph", layer(gcn(2, 2), X, "ring"), TypeError, "needs a graph"),
    ("a graph for a grid", layer(conv2d(2, 2, 3), IMAGE, ring()), ValueError, "conv2d reads its grid off the images"),
    (
        "edge weights for a grid",
        layer(conv2d(2, 2, 3), IMAGE, edge_weight=torch.ones(4)),
        TypeError,
        "has no edge_weight",
    ),
    (
        "weights beside a graph",
        layer(gcn(2, 2), X, Graph(INDEX), edge_weight=torch.ones(4)),
        TypeError,
        "only be given together with a bare edge_index",
    ),
    ("another grid", layer(conv2d(2, 2, 3), IMAGE, Grid((5, 5))), ValueError, "reads its grid off the images"),
    (
        "nodes",
        layer(gcn(2, 2), torch.zeros(4, 2), Graph(INDEX)),
        ValueError,
        "The graph has 3 nodes, but x of shape .* has 4",
    ),
    ("edge_index beyond x", layer(gcn(2, 2), X[:2], INDEX), ValueError, "names node 2, but the graph has 2 nodes"),
    ("float edge_index", layer(gcn(2, 2), X, INDEX.float()), TypeError, "must be an integer tensor"),
    ("channels", layer(gcn(5, 2), X, INDEX), ValueError, "takes 5 channels in, but the signal has 2"),
    ("image channels", layer(conv2d(3, 2, 3), IMAGE), ValueError, r"takes 3 channels in.*Images are \(b, c, \*grid\)"),
    ("a vector", layer(gcn(2, 2), torch.zeros(3), INDEX), ValueError, r"shape \(\*b, nodes, channels\)"),
    ("a matrix for images", layer(conv2d(2, 2, 3), X), ValueError, r"takes images \(b, c, h, w\) or one without b"),
    ("five axes for images", layer(conv2d(2, 2, 3), IMAGE[None]), ValueError, "takes images"),
    ("a list for x", layer(gcn(2, 2), [[0.0, 0.0]] * 3, INDEX), TypeError, "x must be a torch tensor, not a list"),
    ("integers", layer(gcn(2, 2), X.long(), INDEX), TypeError, "x must hold floating point numbers"),
    (
        "dtype",
        layer(gcn(2, 2), X.double(), INDEX),
        TypeError,
        "x is torch.float64, but the layer's weights are torch.float32",
    ),
    ("device of x", layer(gcn(2, 2), X.to("meta"), INDEX), ValueError, "x is on meta, but the layer is on cpu"),
    (
        "device of the graph",
        layer(gcn(2, 2), X, Graph(INDEX).to("meta")),
        ValueError,
        "The graph is on meta, but x is on cpu",
    ),
    ("device of a bare edge_index", layer(appnp(), X, Graph(INDEX).to("meta")), ValueError, "The graph is on meta"),
    (
        "NaN weights",
        layer(gcn(2, 2), X, INDEX, edge_weight=torch.full((4,), float("nan"))),
        ValueError,
        "must be finite",
    ),
    ("negative degrees", layer(gcn(2, 2), X, INDEX, edge_weight=-2 * torch.ones(4)), ValueError, "needs degrees >= 0"),
    (
        "lowering",
        layer(gcn(2, 2), X, INDEX, lowering="fft"),
        Inadmissible,
        "cannot run this operator: it needs the shifts",
    ),
    (
        "unknown lowering",
        layer(gcn(2, 2), X, INDEX, lowering="magic"),
        Inadmissible,
        "no lowering named 'magic'; there are",
    ),
    (
        "a directed graph's Fourier basis",
        layer(spectral(2, 2, k=2), torch.zeros(6, 2), messy()),
        ValueError,
        "undirected graph",
    ),
    ("no labels", layer(selection(2, 2, 9), X, INDEX), ValueError, "selection needs a label on every edge"),
    ("labels too large", layer(selection(2, 2, 2), torch.zeros(6, 2), messy()), ValueError, "an edge has label 2"),
    ("no coordinates", layer(monet(2, 2, dim=2, kernel_size=2), X, INDEX), ValueError, "the graph has none"),
    (
        "coordinates",
        layer(monet(2, 2, dim=3, kernel_size=2), torch.zeros(6, 2), messy()),
        ValueError,
        "3 numbers an edge; the graph has 2",
    ),
    (
        "a kernel larger than the grid",
        layer(conv2d(2, 2, 7), IMAGE),
        ValueError,
        "does not fit the grid: along axis 0 it spans 7",
    ),
    (
        "reflection too far",
        layer(conv2d(2, 2, 3, padding=6, padding_mode="reflect"), IMAGE),
        ValueError,
        "reflect padding can reach at most 5",
    ),
    (
        "circular too far",
        layer(conv2d(2, 2, 3, padding=7, padding_mode="circular"), IMAGE),
        ValueError,
        "circular padding can reach at most 6",
    ),
    (
        "a map on the wrong domain",
        lambda: GConv(gcn(2, 2)).at(Grid((3,))),
        TypeError,
        "gcn works on a graph, but a grid was given",
    ),
    ("a map on the wrong grid", lambda: GConv(conv1d(2, 2, 1)).at(Grid((3, 3))), ValueError, "works on 1-D grids"),
    (
        "a map of a signal that does not fit",
        lambda: GConv(gcn(2, 2)).at(Graph(INDEX), x=torch.zeros(5, 2)),
        ValueError,
        "3 sites",
    ),
    (
        "a map frozen at a batch",
        lambda: GConv(gat(2, 2)).at(Graph(INDEX), x=torch.zeros(2, 3, 2)),
        ValueError,
        "3 sites",
    ),
    (
        "a map applied to the wrong signal",
        lambda: GConv(gcn(2, 2)).at(Graph(INDEX)) @ torch.zeros(4, 2),
        ValueError,
        "takes signals",
    ),
    (
        "the graph by PyG's name",
        lambda: GConv(gcn(2, 2))(X, edge_index=INDEX),
        TypeError,
        "gcn layer: unknown 'edge_index'; did you mean 'domain'",
    ),
    (
        "a misspelt option of a call",
        lambda: GConv(gcn(2, 2))(X, INDEX, lowerng="dense"),
        TypeError,
        "gcn layer: unknown 'lowerng'; did you mean 'lowering'",
    ),
    (
        "a misspelt option of a plan",
        lambda: GConv(conv2d(2, 2, 3)).plan(IMAGE, mesure=True),
        TypeError,
        "plan: unknown 'mesure'; did you mean 'measure'",
    ),
    (
        "a shape for a signal",
        lambda: GConv(conv2d(2, 2, 3)).plan((1, 2, 6, 6)),
        TypeError,
        r"must be a torch tensor or a pair of them, \(x_source, x_target\), but it is \(1, 2, 6, 6\)",
    ),
    (
        "a network for a map",
        lambda: analysis.norm(NET, domain=Grid((6, 6))),
        OutsideFamily,
        "norm takes a linear map, not a network: ReLU.*effective_receptive_field",
    ),
    (
        "a bound with a batch axis",
        lambda: analysis.lipschitz_bound(NET, (1, 2, 6, 6)),
        InputError,
        r"adds a batch axis to its input x, here of shape \(1, 2, 6, 6\)",
    ),
    (
        "a bound with other channels",
        lambda: analysis.lipschitz_bound(NET, (3, 6, 6)),
        InputError,
        r"shape \(3, 6, 6\).*takes 2 channels in, but the signal has 3",
    ),
    (
        "the twin of a network",
        lambda: gconv.twin(NET),
        OutsideFamily,
        "several layers: convert them one by one, or run the whole network on pixels with gconv.transfer",
    ),
    (
        "the twin of another network",
        lambda: gconv.twin(nn.TransformerEncoderLayer(4, 2)),
        OutsideFamily,
        "several layers|not a layer",
    ),
    (
        "a clipped layer with a stride",
        lambda: analysis.clip_singular_values(GConv(conv2d(2, 2, 3, stride=2)), Grid((6, 6)), 1.0),
        ValueError,
        "singular_values and spectral_normalise accept any stride",
    ),
    (
        "an unknown argument of a reader",
        lambda: Graph.from_edge_list([], n=3),
        TypeError,
        "arguments are edges, source",
    ),
    ("nothing to convolve with", lambda: GConv("cheb"), TypeError, "takes an operator spec"),
]

SPECS = [
    ("groups", lambda: conv2d(3, 4, 3, groups=2), "does not divide both 3 and 4"),
    ("groups of the output", lambda: conv2d(4, 3, 3, groups=2), "does not divide both 4 and 3"),
    ("no groups", lambda: conv2d(4, 4, 3, groups=0), "groups must divide"),
    ("kernel_size 0", lambda: conv2d(1, 1, 0), "kernel_size must be an integer >= 1"),
    ("kernel_size float", lambda: conv2d(1, 1, 2.5), "kernel_size must be an integer"),
    (
        "kernel_size of another dimension",
        lambda: conv2d(1, 1, (3, 3, 3)),
        "kernel_size must be an integer >= 1, or 2 of them",
    ),
    ("stride 0", lambda: conv2d(1, 1, 3, stride=0), "stride must be an integer >= 1"),
    ("dilation 0", lambda: conv2d(1, 1, 3, dilation=0), "dilation must be"),
    ("negative padding", lambda: conv2d(1, 1, 3, padding=-1), "padding must be an integer >= 0"),
    ("a padding word", lambda: conv2d(1, 1, 3, padding="full"), "'same' or 'valid', but it is 'full'"),
    ("same with a stride", lambda: conv2d(1, 1, 3, stride=2, padding="same"), "keeps the size of the grid"),
    ("padding_mode", lambda: conv2d(1, 1, 3, padding_mode="mirror"), "padding_mode must be 'zeros', 'circular'"),
    ("output_padding", lambda: conv_transpose2d(1, 1, 3, stride=2, output_padding=2), "output_padding must be smaller"),
    ("no channels in", lambda: conv2d(0, 1, 3), "channels"),
    ("no channels out", lambda: gcn(2, -1), "channels"),
    ("float channels", lambda: gcn(2.0, 1), "channels"),
    ("pool padding", lambda: avg_pool2d(2, padding=2), "at most half of its kernel"),
    ("divisor", lambda: avg_pool2d(2, divisor_override=0), "divisor_override must be a positive integer"),
    ("pool stride", lambda: max_pool2d(2, stride=0), "stride must be"),
    ("reduce", lambda: global_pool("median"), "'mean', 'sum' or 'max', but it is 'median'"),
    ("aggr", lambda: sage(2, 2, aggr="lstm"), "aggr must be"),
    ("graphconv aggr", lambda: graphconv(2, 2, aggr="mul"), "aggr must be"),
    ("cheb k", lambda: cheb(2, 2, k=0), "k must be an integer >= 1"),
    ("cheb float k", lambda: cheb(2, 2, k=2.0), "k must be an integer >= 1"),
    ("cheb normalization", lambda: cheb(2, 2, k=2, normalization="row"), "normalization must be"),
    ("sgc k", lambda: sgc(2, 2, k=0), "k must be"),
    ("tag k", lambda: tag(2, 2, k=-1), "k must be"),
    ("appnp alpha", lambda: appnp(3, 1.5), "alpha is a probability"),
    ("spectral normalization", lambda: spectral(2, 2, normalization="rw"), "needs a symmetric Laplacian"),
    ("selection taps", lambda: selection(2, 2, 0), "taps must be a positive integer"),
    ("monet kernels", lambda: monet(2, 2, dim=2, kernel_size=0), "at least one coordinate and one Gaussian"),
    ("gat heads", lambda: gat(2, 2, heads=0), "heads must be a positive integer"),
    ("gat dropout", lambda: gat(2, 2, dropout=1.0), "dropout is a probability"),
    ("unknown operator", lambda: OperatorSpec.parse("conv9d(1, 2)"), "named 'conv9d'; did you mean 'conv3d'"),
    ("a name like no other", lambda: OperatorSpec.parse("zzz(1)"), "no operator named 'zzz'; there are adaptive"),
    (
        "code for a spec",
        lambda: OperatorSpec.parse("cheb(__import__('os').getpid(), 2, k=3)"),
        "is not an operator with its arguments",
    ),
    (
        "a sentence for a spec",
        lambda: OperatorSpec.parse("a convolution please"),
        "is not an operator with its arguments",
    ),
    ("a dict without a name", lambda: OperatorSpec.from_dict({"k": 3}), "no operator named ''"),
]


def one_error(act, kind, message):
    with pytest.raises(kind, match=message) as caught:
        act()
    text = str(caught.value)
    assert text.rstrip().endswith((".", "it.")) and "\n" not in text, f"not a sentence: {text}"


@pytest.mark.parametrize(("act", "kind", "message"), [case[1:] for case in GRAPHS], ids=[case[0] for case in GRAPHS])
def test_graphs(act, kind, message):
    one_error(act, kind, message)


@pytest.mark.parametrize(("act", "kind", "message"), [case[1:] for case in CALLS], ids=[case[0] for case in CALLS])
def test_calls(act, kind, message):
    one_error(act, kind, message)


@pytest.mark.parametrize(("act", "message"), [case[1:] for case in SPECS], ids=[case[0] for case in SPECS])
def test_specs(act, message):
    one_error(act, ValueError, message)


@pytest.mark.parametrize("name", list_operators())
def test_an_unknown_option_is_refused_by_every_operator(name):
    given = dict(operator(name).samples()[0].spec.arguments)
    with pytest.raises(TypeError, match="colour"):
        operator(name).factory(**given, colour="red")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_device_is_an_error_with_a_message():
    for move in (Graph(INDEX).to, Bipartite(INDEX, (3, 3)).to, lambda device: GConv(gcn(2, 2), device=device)):
        with pytest.raises(ValueError, match=r"device: The device 'cuda' cannot be used by torch .* here: ") as caught:
            move("cuda")
        assert "\n" not in str(caught.value)


def test_lambda_max():
    for value in (0, -1.0, "largest"):
        with pytest.raises(ValueError, match="lambda_max must be a positive number, 'bound', 'exact' or None"):
            GConv(cheb(2, 2, k=2, lambda_max=value))(X, INDEX)


def test_an_error_changes_no_state():
    """A refused call leaves the layer and the graph as they were."""
    made, graph = GConv(gcn(2, 2)), Graph(INDEX)
    with pytest.raises(ValueError):
        made(torch.zeros(3, 5), graph)
    assert not graph._memo


def test_a_dense_matrix_that_is_too_large(monkeypatch):
    def no_memory(*args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nmore")

    monkeypatch.setattr("gconv.lowering.dense.matrix", no_memory)
    one_error(lambda: analysis.matrix(GConv(gcn(2, 2)).at(Graph(INDEX))), RuntimeError, "dense matrix of 6 x 6 numbers")
