"""Every argument of every public function, given values of wrong types and shapes, ends in a sentence that names it.

The functions are found in the packages' `__all__`, the arguments in their signatures; only a right call of each is
written down here. Operators are tested in the same way in test_arguments.py, whose factories share one check.
"""

import inspect
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import matplotlib.pyplot
import networkx
import numpy as np
import pytest
import scipy.sparse
import torch
import torch.distributed as dist
from torch import nn
from torch_geometric.data import Data

import datasets
import gconv
from datasets import bccd, membrane, multi30k, ogb, photos, wheels
from datasets import text as texts
from datasets.root import DataError
from gconv import analysis, blocks, external, interop, linear, parallel, testing
from gconv.operators import cheb, conv2d, gcn
from gconv.operators.shapes import ring
from gconv.spec import Sample

PACKAGES = (gconv, analysis, blocks, external, interop, linear, parallel, testing, datasets)
READERS = (bccd.load_bccd, membrane.load_membrane, multi30k.load_multi30k, ogb.load_ogb, photos.read_photo,
           texts.load_text, wheels.load_weights, wheels.wheel_of)  # fmt: skip
NONSENSE = {
    "None": None,
    "a flag": True,
    "a negative number": -7,
    "a fraction": 0.5,
    "not a number": float("nan"),
    "a huge number": 2**70,
    "a word": "magic",
    "bytes": b"x",
    "a list": [],
    "a dictionary": {},
    "an object": object(),
    "a class": int,
    "a tensor of integers": torch.zeros(2, 3, dtype=torch.int64),
    "a tensor of seven axes": torch.zeros((1,) * 7),
    "a type of integers": torch.int64,
    "a layer": nn.ReLU(),
    "no text": "",
}
RAW = (  # what Python, numpy and torch say of a mistake inside a function
    "object has no attribute",
    "unsupported operand",
    "not iterable",
    "not subscriptable",
    "not callable",
    "object is not",
    "has no len",
    "an integer is required",
    "must be str, not",
    "expected str, bytes",
    "Bad file descriptor",
    "list index out of range",
    "broadcast",
    "invalid combination",
    "Expected one of cpu",
)
WORDS = {  # what messages call an argument, beside its name
    "A": "map|matrix",
    "axes": "axis",
    "blocks": "block",
    "coarser": "mask|frame",
    "data": "operator",
    "domain": "grid|graph|sites|mask|edge_index",
    "dtypes": "dtype",
    "edges": "edge|file|rows|column",
    "faces": "face|vertex",
    "graph": "edge_index",
    "cols": "selection|index",
    "i": "selection|index",
    "in_channels": "channels",
    "into": "network",
    "index": "numbers",
    "labels": "label",
    "layers": "layer",
    "laws": "law",
    "maps": "map",
    "mean": "images",
    "model": "module|layer",
    "name": "data set|Planetoid graph|text set|weights|arxiv",
    "num_nodes": "size|nodes",
    "nodes": "node",
    "out_channels": "channels",
    "pos": "positions|sites",
    "o": "selection|index",
    "rows": "map|block|selection|index",
    "shape": "axis|axes|frame|grid",
    "spec": "operator",
    "text": "operator",
    "vertices": "vertex",
    "value": "norm",
    "weight": "attribute|column",
    "whole": "block",
    "x": "signal|input|images|features",
}


def conv():
    return gconv.GConv(conv2d(2, 2, 3, padding=1))


def net():
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))


class Constant(nn.Module):
    """A model without inputs."""

    def forward(self):
        return torch.ones(2)


def image():
    return torch.rand(1, 2, 5, 5)


def bytes_of(*shape):
    return torch.randint(256, shape, dtype=torch.uint8)


def signal():
    return torch.rand(7, 2)


GRID = gconv.Grid((5, 5))
INDEX = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
MUCH = {"memory": "64GB"}  # more than the process that runs all tests may hold


def sites_map():
    return linear.identity(7, 2)


def sample():
    return Sample(gcn(2, 2), ring, 2)


def triangle():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    return vertices, torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])


# A right call of each, as a function of a folder.
CALLS: dict[str, Any] = {
    "Bipartite": lambda _: {"edge_index": torch.tensor([[0, 1], [0, 0]]), "sizes": (2, 1)},
    "Bipartite.union": lambda _: {"blocks": [gconv.Bipartite(torch.tensor([[0, 1], [0, 0]]), (2, 1))]},
    "GConv": lambda _: {"spec": gcn(2, 2)},
    "GConv.from_torch": lambda _: {"layer": nn.Conv2d(2, 2, 3)},
    "Graph": lambda _: {"edge_index": INDEX},
    "Graph.from_edge_index": lambda _: {"edge_index": INDEX},
    "Graph.from_edge_list": lambda _: {"edges": [("a", "b"), ("b", "c")]},
    "Graph.from_hyperedge_index": lambda _: {"hyperedge_index": INDEX},
    "Graph.from_networkx": lambda _: {"graph": networkx.path_graph(3)},
    "Graph.from_pyg": lambda _: {"data": Data(edge_index=INDEX, num_nodes=3)},
    "Graph.from_scipy": lambda _: {"matrix": scipy.sparse.eye_array(3).tocsr()},
    "Graph.from_sparse": lambda _: {"adjacency": torch.eye(3).to_sparse()},
    "Graph.union": lambda _: {"graphs": [ring(3), ring(4)]},
    "Grid": lambda _: {"shape": (5, 5)},
    "OperatorSpec.from_dict": lambda _: {"data": gcn(2, 2).to_dict()},
    "OperatorSpec.parse": lambda _: {"text": "gcn(2, 2)"},
    "Pixels.from_labels": lambda _: {"labels": torch.tensor([[0, 0], [1, 1]])},
    "Pixels.from_mask": lambda _: {"mask": torch.ones(4, 4, dtype=torch.bool)},
    "Pixels.from_pos": lambda _: {"pos": torch.rand(5, 2) * 4},
    "Surface": lambda _: dict(zip(("vertices", "faces"), triangle(), strict=True)),
    "Surface.sphere": lambda _: {"level": 0},
    "adapt": lambda _: {"model": net()},
    "apply_blocks": lambda _: {
        "net": nn.Sequential(gconv.GConv(gcn(2, 2))),
        "x": torch.rand(7, 2),
        "blocks": ring(7).sample(torch.arange(7), [9]),
    },
    "as_linear_map": lambda _: {"module": nn.Conv2d(2, 2, 3), "domain": GRID},
    "cite": lambda _: {"spec": "gcn"},
    "constant": lambda _: {"x": signal()},
    "convert": lambda _: {"model": net()},
    "export": lambda _: {"layer": conv(), "library": "torch"},
    "grid_graph": lambda _: {"shape": (3, 3)},
    "load": lambda folder: {"path": saved(folder)},
    "merge": lambda _: {"model": gconv.adapt(net())},
    "save": lambda folder: {"module": conv(), "path": folder / "b.safetensors"},
    "summary": lambda _: {"model": Constant()},
    "transfer": lambda _: {"model": nn.Sequential(conv()), "domain": gconv.Pixels.from_mask(torch.ones(5, 5) > 0)},
    "twin": lambda _: {"layer": conv()},
    "unmerge": lambda _: {"model": gconv.merge(gconv.adapt(net()))},
    # analysis
    "Flip": lambda _: {},
    "Permutation": lambda _: {"order": (1, 0)},
    "Rot90": lambda _: {},
    "Shift": lambda _: {"steps": (1, 1)},
    "SpectralNorm": lambda _: {"layer": conv(), "domain": GRID},
    "adjoint_gap": lambda _: {"A": sites_map()},
    "affine": lambda _: {"model": conv(), "x": image()},
    "clip_singular_values": lambda _: {"layer": conv(), "domain": GRID, "top": 1.0},
    "cost": lambda _: {"A": conv(), "x": image()},
    "dirichlet_energy": lambda _: {"x": signal(), "graph": ring()},
    "effective_receptive_field": lambda _: {"model": conv(), "x": (2, 5, 5)},
    "effective_resistance": lambda _: {"graph": ring()},
    "energy_by_depth": lambda _: {"model": [gconv.GConv(gcn(2, 2))], "x": signal(), "graph": ring()},
    "equivariance_error": lambda _: {"model": conv(), "action": analysis.Rot90(), "x": image()},
    "frequency_response": lambda _: {"A": gconv.GConv(cheb(2, 2, 3)), "domain": ring()},
    "lipschitz_bound": lambda _: {"model": conv(), "x": (2, 5, 5)},
    "matrix": lambda _: {"A": sites_map()},
    "mean_average_distance": lambda _: {"x": signal()},
    "norm": lambda _: {"A": sites_map()},
    "norm_bound": lambda _: {"A": sites_map()},
    "parameter_count": lambda _: {"model": net()},
    "plot_energy": lambda _: {"energies": torch.ones(3)},
    "plot_matrix": lambda _: {"A": torch.ones(3, 3)},
    "plot_receptive_field": lambda _: {"field": torch.ones(5, 5)},
    "plot_response": lambda _: {"response": analysis.frequency_response(gconv.GConv(cheb(1, 1, 2)), ring())},
    "plot_spectrum": lambda _: {"values": torch.ones(3)},
    "receptive_field": lambda _: {"A": sites_map()},
    "singular_values": lambda _: {"A": sites_map()},
    "spectral_normalise": lambda _: {"layer": conv(), "domain": GRID},
    "total_influence": lambda _: {"model": gconv.GConv(gcn(2, 2)), "x": signal(), "graph": ring()},
    # blocks
    "Shortcut": lambda _: {"body": nn.Identity()},
    "inverted_residual": lambda _: {"in_channels": 4, "out_channels": 4},
    "low_rank_conv2d": lambda _: {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "rank": 2},
    "mobilenet_unit": lambda _: {"in_channels": 4, "out_channels": 4},
    "shufflenet_unit": lambda _: {"in_channels": 24, "out_channels": 24},
    # external
    "DiskGraph.build": lambda folder: {"path": folder / "g", "edges": torch.tensor([[0, 1], [1, 2]]).numpy(), **MUCH},
    "DiskGraph.open": lambda folder: {"path": disk_graph(folder)},
    "Rows": lambda _: {"signals": [np.ones((3, 2), dtype=np.float32)]},
    "features_from_text": lambda folder: {"path": text(folder), "out": folder / "x.npy"},
    "infer": lambda folder: {
        "net": nn.Sequential(gconv.GConv(gcn(2, 2))),
        "graph": disk_graph(folder),
        "x": np.ones((3, 2), dtype=np.float32),
        "out": folder / "y.npy",
        **MUCH,
    },
    "propagate": lambda folder: {
        "graph": disk_graph(folder),
        "x": np.ones((3, 2), dtype=np.float32),
        "k": 1,
        "out": folder / "steps",
        **MUCH,
    },
    # interop
    "from_torch": lambda _: {"layer": nn.Conv2d(2, 2, 3)},
    "preview": lambda _: {"model": net()},
    "restore": lambda _: {"layer": gconv.convert(nn.Conv2d(2, 2, 3))},
    # linear
    "block": lambda _: {"rows": [[sites_map(), None], [None, sites_map()]]},
    "block_diag": lambda _: {"maps": [sites_map(), sites_map()]},
    "hstack": lambda _: {"maps": [sites_map(), sites_map()]},
    "vstack": lambda _: {"maps": [sites_map(), sites_map()]},
    "identity": lambda _: {"sites": 3},
    "select_channels": lambda _: {"index": [0, 1], "channels": 2, "sites": 3},
    "select_sites": lambda _: {"index": [0, 1], "channels": 2, "sites": 3},
    # datasets; none of the files is there, which is said once all else is right
    "channel_stats": lambda _: {"images": bytes_of(2, 3, 4, 4)},
    "content_hash": lambda folder: {"paths": [Path(text(folder))]},
    "data_root": lambda _: {"root": "data"},
    "datasets.grid_graph": lambda _: {"image": torch.rand(1, 4, 4)},
    "datasets.load": lambda _: {"name": "karate"},
    "hash_parts": lambda _: {"parts": {"a": b"1"}},
    "knn_graph": lambda _: {"image": torch.rand(1, 4, 4)},
    "load_bccd": lambda folder: {"root": folder},
    "load_cifar10": lambda folder: {"root": folder},
    "load_citation_like": lambda _: {
        "nodes": 90,
        "classes": 2,
        "words": 9,
        "degree": 2.0,
        "validation": 10,
        "test": 10,
    },
    "load_digits": lambda _: {},
    "load_digits_knn": lambda _: {},
    "load_membrane": lambda folder: {"root": folder},
    "load_multi30k": lambda folder: {"root": folder},
    "load_ogb": lambda folder: {"name": "arxiv", "root": folder},
    "load_planetoid": lambda folder: {"name": "Cora", "root": folder},
    "load_text": lambda folder: {"name": "MR", "root": folder},
    "load_weights": lambda folder: {"name": "pnet", "root": folder},
    "normalise": lambda _: {"images": bytes_of(2, 3, 4, 4), "mean": torch.ones(3), "std": torch.ones(3)},
    "read_photo": lambda folder: {"path": folder / "a.png"},
    "superpixel_graph": lambda _: {"image": torch.rand(1, 4, 4), "segments": 4},
    "superpixel_set": lambda folder: {
        "images": bytes_of(2, 1, 4, 4),
        "labels": torch.zeros(2, dtype=torch.int64),
        "root": folder,
        "segments": 4,
        "progress": False,
    },
    "wheel_of": lambda folder: {"name": "pnet", "root": folder},
    # parallel, in a group of one process
    "distribute": lambda _: {"model": nn.Sequential(gconv.GConv(gcn(2, 2))), "partition": parallel.shard(ring())},
    "halo": lambda _: {"S": gconv.GConv(gcn(2, 2)).at(ring()).S, "part_in": parallel.shard(ring())},
    "shard": lambda _: {"domain": ring()},
    "sync_batch_norm": lambda _: {"module": nn.Sequential(nn.BatchNorm2d(2))},
    # testing
    "check_operator": lambda _: {"operator": sample(), "dtypes": [torch.float64], "laws": [testing.law_linearity]},
}
# Methods, beside constructors and class methods: a right object of each class.
OBJECTS: dict[str, Any] = {
    "Bipartite": lambda: gconv.Bipartite(torch.tensor([[0, 1], [0, 0]]), (2, 1)),
    "GConv": lambda: gconv.GConv(gcn(2, 2)),
    "Graph": lambda: ring(7),
    "LinearMap": sites_map,
    "Twin": lambda: gconv.twin(conv()),
    "Rows": lambda: external.Rows([np.ones((3, 2), dtype=np.float32)]),
    "Pixels": lambda: gconv.Pixels.from_mask(torch.ones(4, 4) > 0),
    "Surface": lambda: gconv.Surface(*triangle()),
}
METHODS: dict[str, Any] = {
    "Bipartite.permute": lambda _: {"source": torch.tensor([1, 0]), "target": torch.tensor([0])},
    "Bipartite.split": lambda _: {"x": torch.rand(3, 2)},
    "Bipartite.stack": lambda _: {"x_source": torch.rand(2, 2), "x_target": torch.rand(1, 2)},
    "Bipartite.to": lambda _: {"device": "cpu"},
    "GConv.at": lambda _: {"domain": ring()},
    "GConv.forward": lambda _: {"x": signal(), "domain": ring()},
    "GConv.plan": lambda _: {"x": signal(), "domain": ring()},
    "Graph.blocks_of": lambda _: {"batch": batch(), "layers": 1},
    "Graph.permute": lambda _: {"order": torch.arange(7)},
    "Graph.reordered": lambda _: {},
    "Graph.sample": lambda _: {"seeds": torch.arange(2), "fanouts": [2]},
    "Graph.to": lambda _: {"device": "cpu"},
    "LinearMap.apply": lambda _: {"x": signal()},
    "LinearMap.restrict": lambda _: {"rows": [0, 1]},
    "Pixels.gather": lambda _: {"images": torch.rand(1, 2, 4, 4)},
    "Pixels.scatter": lambda _: {"signal": torch.rand(16, 2)},
    "Rows.batch": lambda _: {"places": [0, 1]},
    "Surface.nearest": lambda _: {"points": torch.rand(2, 3).double()},
    "Twin.forward": lambda _: {"x": image()},
    "Twin.graph": lambda _: {"shape": (5, 5)},
}
# Not called by users, or tested elsewhere in words of their own.
ALLOWED = {
    ("LinearMap.apply", "lowering", "a list"),  # A @ x has no time for a check of what is not hashable
    ("LinearMap.apply", "lowering", "a dictionary"),
    ("Graph", "size", "None"),  # the default, as from_edge_index says it
}
LEFT_OUT = {
    "Affine", "CacheInfo", "Entry", "Report", "Response", "Halo", "Partition", "ProcessError", "Law", "Case",
    "OperatorSpec", "LinearMap", "Pixels", "Twin", "DiskGraph",
    "Block", "Composed", "Map", "Program", "ProgramMap", "Scaled", "Sum",  # made by the algebra
    "Grid.of",  # on the path of every call; it reads images that were checked
    "assert_close",  # raises AssertionError, as it says
    "Bipartite.from_pyg", "Graph.from_pygsp",  # read objects of other libraries, see test_readers
    "GraphSet", "ImageSet", "SuperpixelSet",  # what loaders return
}  # fmt: skip


def batch():
    return Data(n_id=torch.arange(7), batch_size=2, edge_index=INDEX, num_nodes=7)


def saved(folder):
    path = folder / "a.safetensors"
    gconv.save(conv(), path)
    return path


def disk_graph(folder):
    if not (folder / "disk").exists():
        external.DiskGraph.build(folder / "disk", np.array([[0, 1], [1, 2]]), nodes=3, **MUCH)
    return folder / "disk"


def text(folder):
    (folder / "x.txt").write_text("1 2\n3 4\n")
    return folder / "x.txt"


def public():
    """Name -> function, for all that is public."""
    found = {}
    for package in PACKAGES:
        for name in package.__all__:
            value = getattr(package, name)
            if not callable(value) or (isinstance(value, type) and issubclass(value, BaseException)):
                continue
            if name.startswith("law_"):
                continue
            if name in found and found[name] is not value:
                name = f"{package.__name__}.{name}"
            found[name] = value
            if isinstance(value, type) and name not in ("Case", "Program"):
                for key, member in vars(value).items():
                    if isinstance(member, classmethod | staticmethod) and not key.startswith("_"):
                        found[f"{name}.{key}"] = getattr(value, key)
    return found | {function.__name__: function for function in READERS}


PUBLIC = public()


def function_of(name):
    if name in METHODS:
        return getattr(OBJECTS[name.split(".")[0]](), name.split(".")[1])
    return PUBLIC[name]


def test_every_public_function_has_a_right_call():
    takes = {name for name, f in PUBLIC.items() if name not in LEFT_OUT and list(inspect.signature(f).parameters)}
    assert takes == {name for name, call in CALLS.items() if call} - LEFT_OUT


def arguments():
    """(function, argument) for every argument that has a name."""
    for name, call in {**CALLS, **METHODS}.items():
        if call and name not in LEFT_OUT:
            for parameter in inspect.signature(function_of(name)).parameters.values():
                if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and parameter.name != "_":
                    yield name, parameter.name


def hints_of(function):
    try:
        return get_type_hints(function.__init__ if isinstance(function, type) else function)
    except Exception:
        return {}


def plain_kinds(hint):
    """The kinds of scalars that an annotation asks for; nothing where it asks for anything else."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if all(part in (bool, int, float, str, None, NoneType) or get_origin(part) is Literal for part in parts):
        return parts
    return ()


def is_one_of(value, kinds):
    for kind in kinds:
        if get_origin(kind) is Literal:
            if any(type(value) is type(word) and value == word for word in get_args(kind)):
                return True
        elif kind in (None, NoneType):
            if value is None:
                return True
        elif kind is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return True
        elif kind is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return True
        elif isinstance(value, kind):
            return True
    return False


def wrong_answers(name, argument, folder):
    """What is wrong with the answers of a function to values that are no such argument."""
    function, make = function_of(name), {**CALLS, **METHODS}[name]
    kinds = plain_kinds(hints_of(function).get(argument, Any))
    words = {name, name.split(".")[-1], argument, *WORDS.get(argument, argument).split("|")}
    for what, value in NONSENSE.items():
        if (name, argument, what) in ALLOWED or (argument == "progress" and what in ("a class", "a layer")):
            continue
        place = folder / what.replace(" ", "-")
        place.mkdir()
        refused = False
        try:
            function(**{**make(place), argument: value})
        except DataError:
            pass  # no file is there
        except (ValueError, TypeError, OSError) as error:
            text, refused = str(error), True
            named = "|".join(map(re.escape, words | ({"ReLU"} if what == "a layer" else set())))
            if isinstance(error, OSError) and str(value) in text:
                continue  # which file could not be read or written
            if any(raw in text for raw in RAW) or not re.search(
                rf"(?<![a-z])({named})s?(?![a-z])", text, re.IGNORECASE
            ):
                yield f"{name}({argument}={what}): {type(error).__name__}: {text[:200]}"
            elif "\n" in text.strip() and not isinstance(error, OSError):
                yield f"{name}({argument}={what}): not one line: {text[:200]}"
        except BaseException as error:
            yield f"{name}({argument}={what}): {type(error).__name__}: {str(error)[:200]}"
            continue
        if not refused and kinds and not is_one_of(value, kinds):
            yield f"{name}({argument}={what}) is accepted, but it is to be {kinds}"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GCONV_OFFLINE", "1")
    monkeypatch.delenv("GCONV_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    matplotlib.use("Agg")
    monkeypatch.setitem(matplotlib.rcParams, "figure.max_open_warning", 0)
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    if name in ("distribute", "halo", "shard", "sync_batch_norm"):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        yield
        dist.destroy_process_group()
    else:
        yield
    matplotlib.pyplot.close("all")


ARGUMENTS = [(name, argument) for name, argument in arguments() if not name.startswith("plot_")]
PLOTS = [(name, argument) for name, argument in arguments() if name.startswith("plot_")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "argument"), PLOTS)
def test_every_argument_of_plots_is_checked(name, argument, tmp_path):
    wrong = list(wrong_answers(name, argument, tmp_path))
    assert not wrong, "\n".join(wrong)


@pytest.mark.sampled(16)
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_every_argument_is_checked(name, argument, tmp_path):
    wrong = list(wrong_answers(name, argument, tmp_path))
    assert not wrong, "\n".join(wrong)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", [name for name, call in {**CALLS, **METHODS}.items() if call and name not in LEFT_OUT])
def test_the_right_calls_are_right(name, tmp_path):
    function, make = function_of(name), {**CALLS, **METHODS}[name]
    try:
        function(**make(tmp_path))
    except DataError as error:
        assert str(tmp_path) in str(error)  # it asks for the files


CALLABLE = [name for name, call in {**CALLS, **METHODS}.items() if call and name not in LEFT_OUT]


@pytest.mark.sampled(16)
@pytest.mark.parametrize("name", CALLABLE)
def test_calls_of_a_wrong_form_name_the_function_and_an_argument(name, tmp_path):
    """No argument, too many by position, and an unknown name."""
    function, short = function_of(name), name.split(".")[-1]
    right = {**CALLS, **METHODS}[name](tmp_path)
    parameters = inspect.signature(function).parameters.values()
    kinds = {p.kind for p in parameters}
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    calls = [lambda: function()] if needed else []
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        calls.append(lambda: function(*right.values(), *[None] * 30))
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        calls.append(lambda: function(**right, magic=1))
    for call in calls:
        with pytest.raises(TypeError) as caught:
            call()
        text = str(caught.value)
        assert "\n" not in text and (short in text or name.split(".")[0] in text), text
        assert any(re.search(rf"\b{p.name}\b", text) for p in parameters) or "magic" in text or "positional" in text
