"""How many of gconv's own Python frames a warm call of a layer takes: what a call on a small graph costs by itself."""

import re
import sys
from pathlib import Path

import pytest
import torch

import gconv
from gconv import GConv, Graph, Grid, list_operators
from gconv.kernels import native
from gconv.operators import cheb, conv2d, gat, gcn
from gconv.spec import operator
from gconv.testing import Case

PACKAGE = str(Path(gconv.__file__).parent)
INDEX = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 0], [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 4, 5]])


def frames(run):
    """The functions of gconv that a call enters once it has run, in order."""
    entered = []

    def note(frame, event, arg):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            entered.append(frame.f_code.co_qualname)

    for _ in range(3):
        run()
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return entered


@pytest.mark.parametrize(
    ("spec", "most"), [(gcn(16, 7), 25), (cheb(16, 7, k=3), 35), (gat(16, 8, heads=2), 45)], ids=["gcn", "cheb", "gat"]
)
def test_a_warm_call_on_a_graph(spec, most):
    layer, x = GConv(spec), torch.randn(10, 16)
    entered = frames(lambda: layer(x, INDEX))
    most = most if native.LIBRARY is not None else 1.5 * most  # torch's operators need more
    assert len(entered) <= most, entered
    graph = Graph(INDEX, 10)
    assert len(frames(lambda: layer(x, graph))) < len(entered)


def test_a_warm_call_on_images():
    layer, images = GConv(conv2d(16, 16, 3, padding=1)), torch.randn(4, 16, 32, 32)
    entered = frames(lambda: layer(images, lowering="native"))
    assert len(entered) <= 10, entered


def test_a_warm_call_of_a_converted_layer():
    nn = pytest.importorskip("torch_geometric.nn")
    layer, x = gconv.convert(torch.nn.ModuleList([nn.GCNConv(16, 7)]))[0], torch.randn(10, 16)
    entered = frames(lambda: layer(x, INDEX))
    assert len(entered) <= 40, entered


@pytest.mark.skipif(native.LIBRARY is None, reason="the page names the compiled kernels")
@pytest.mark.parametrize("section", ["A graph", "Images"])
def test_the_page_names_every_function(section):
    page = (Path(__file__).parents[1] / "docs" / "a-call-from-end-to-end.md").read_text(encoding="utf-8")
    title, body = next(part.split("\n", 1) for part in page.split("\n## ") if part.startswith(section))
    code = re.search("`(.*)`", title)[1]
    given = {"x": torch.randn(10, 16), "edge_index": INDEX, "images": torch.randn(4, 16, 32, 32)}
    layer, arguments = re.fullmatch(r"(GConv\(.*\))\((.*)\)", code).groups()
    names = {"GConv": GConv, "gcn": gcn, "conv2d": conv2d, **given}
    names["layer"] = eval(layer, names)
    assert re.findall(r"^\d+\. `([^`]+)`", body, re.M) == frames(lambda: eval(f"layer({arguments})", names))


@pytest.mark.slow
def test_warm_calls_of_all_samples():
    counts = {}
    for name in list_operators():
        for sample in operator(name).samples():
            case = Case.of(sample, torch.float32)
            on_grid = isinstance(case.domain, Grid)
            x, domain = (case.x, None) if on_grid else (case.x[0], case.domain)
            counts[sample.name] = len(frames(lambda case=case, x=x, domain=domain: case.layer(x, domain)))
    worst = sorted(counts.items(), key=lambda item: -item[1])
    assert worst[len(worst) // 20][1] <= 170, worst[: len(worst) // 20 + 1]


def test_a_frame_more_is_counted():
    """Negative control."""
    layer, x, graph = GConv(gcn(16, 7)), torch.randn(10, 16), Graph(INDEX, 10)
    portable = frames(lambda: layer(x, graph, lowering="dense"))
    assert "GConv.forward" in portable and len(portable) != len(frames(lambda: layer(x, graph)))
