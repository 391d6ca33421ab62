"""Each extra of pyproject.toml is enough for what it is for, with all else that is installed hidden."""

import functools
import json
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import pytest
from limits import ROOT, fresh
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HIDE = """
import importlib.machinery, json, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)

HIDDEN = set(json.loads(sys.argv[1])) - set(sys.modules)  # but for what torch has imported by itself
sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__name__", "") in ("BuiltinImporter", "FrozenImporter")]
sys.meta_path.append(Finder)
sys.path_importer_cache.clear()
"""
# What is done with each; "" is the package without extras.
USES = {
    "": """
import gconv, os, tempfile, torch
from gconv import __main__
layer = gconv.GConv(gconv.operators.gcn(2, 3))
layer(torch.ones(3, 2), gconv.Graph(torch.tensor([[0, 1], [1, 2]]))).sum().backward()
model = gconv.convert(torch.nn.Conv2d(1, 2, 3))
with tempfile.TemporaryDirectory() as folder:
    gconv.save(model, os.path.join(folder, "a.safetensors"))
    gconv.load(os.path.join(folder, "a.safetensors"))
__main__.main(["operators"])
try:
    import torch_geometric
except ModuleNotFoundError:
    pass
""",
    "graph": """
import gconv, networkx, scipy.sparse, torch
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv
graph = gconv.Graph.from_networkx(networkx.path_graph(4))
gconv.Graph.from_scipy(scipy.sparse.eye_array(3).tocsr())
gconv.Graph.from_pyg(Data(edge_index=graph.edge_index, num_nodes=4))
gconv.convert(GCNConv(2, 3))(torch.ones(4, 2), graph.edge_index)
gconv.export(gconv.GConv(gconv.operators.gcn(2, 3)), "pyg")
gconv.GConv(gconv.operators.gcn(2, 3)).at(graph)
""",
    "parallel": """
import torch, torch.distributed as dist
from gconv import GConv, Graph
from gconv.operators import gcn
from gconv.parallel import distribute, shard
from gconv.parallel.partition import metis_parts
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
path = Graph(torch.tensor([[0, 1, 2], [1, 2, 3]]))
for method in ("rcm", "metis"):
    part = shard(path, method=method)
    part.gather(distribute(GConv(gcn(2, 3)), part)(part.take(torch.ones(4, 2))))
assert metis_parts(path, 2).bincount().tolist() == [2, 2]
dist.destroy_process_group()
""",
    "experiments": """
import tempfile, torch
import datasets
from experiments import tables
from experiments.by_hand import walk
from experiments.images import digits_pair
for name in ("digits", "digits-knn", "karate", "citation-like"):
    datasets.load(name)
datasets.superpixel_graph(torch.rand(3, 8, 8), 4)
with tempfile.TemporaryDirectory() as folder:
    digits_pair.main(["--dataset", "karate", "--model", "gcn", "--epochs", "1", "--seeds", "1",
                      "--jobs", "1", "--results", folder + "/r.jsonl"])
    walk.main(["--figures", folder])
tables.main(["--check"])
""",
    "applications": """
import captum.attr, h5py, keras, onnx, pycocotools.coco, sacrebleu, tokenizers, transformers
import gconv, torch
from experiments import sweep
for table in sweep.TABLES:
    sweep.experiment(table)
print(gconv.convert(keras.Sequential([keras.Input((5, 5, 1)), keras.layers.Conv2D(2, 3)]).layers[0]))
""",
    "triton": """
import gconv.kernels.triton_code
from gconv.kernels import cuda
""",
}


def enough(extra):
    """The distributions that `pip install gconv[extra]` brings, of those that are installed here."""
    todo = [*PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] if extra else ())]
    found = set()
    while todo:
        wanted = Requirement(todo.pop())
        for part in wanted.extras or {""}:
            if wanted.marker and not wanted.marker.evaluate({"extra": part}):
                continue
            name = canonicalize_name(wanted.name)
            if name == "gconv":
                todo += PROJECT["optional-dependencies"][part]
            elif (name, part) not in found:
                found.add((name, part))
                try:
                    below = [Requirement(line) for line in requires(name) or ()]
                except PackageNotFoundError:
                    continue
                todo += [f"{r.name}[{','.join(r.extras)}]" if r.extras else r.name for r in below
                         if r.marker is None or r.marker.evaluate({"extra": part})]  # fmt: skip
    return {name for name, _ in found}


modules = functools.cache(packages_distributions)  # reads the list of files of each distribution


def hidden(extra):
    """Top-level modules that come with other distributions alone."""
    allowed = enough(extra) | {"gconv", "setuptools", "optree"}  # torch has found optree before anything is hidden
    return [
        module
        for module, names in modules().items()
        if not {canonicalize_name(name) for name in names} & allowed
        and module not in ("tests", "experiments", "datasets")
    ]


def test_every_extra_has_a_use():
    assert set(USES) == {"", *PROJECT["optional-dependencies"]} - {"test"}


@pytest.mark.slow
def test_what_is_hidden():
    assert {"torch_geometric", "tyro", "scipy", "pymetis"} <= set(hidden("")) and "torch" not in hidden("")
    assert not {"torch_geometric", "scipy"} & set(hidden("graph")) and "tyro" in hidden("graph")
    assert "torch_geometric" not in hidden("applications")


@pytest.mark.slow
@pytest.mark.parametrize("extra", USES)
def test_an_extra_works_alone(extra):
    if extra == "triton":
        pytest.importorskip("triton")
    done = fresh(HIDE + USES[extra], json.dumps(hidden(extra)))
    assert done.returncode == 0, done.stderr[-3000:]
