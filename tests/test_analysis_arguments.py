"""Wrong arguments of every public function of analysis end in one sentence that says what it takes."""

import inspect
import re

import matplotlib
import pytest
import torch
from torch import nn

from gconv import GConv, Graph, Grid, analysis
from gconv.errors import InputError
from gconv.linear import identity
from gconv.operators import conv2d, gcn, sage
from gconv.operators.shapes import ring

GRID = Grid((5, 5))
CONV = GConv(conv2d(2, 2, 3, padding=1))
IMAGE, SIGNAL = torch.zeros(1, 2, 5, 5), torch.zeros(7, 2)

# what is no map, layer, signal, graph, ... whatever is asked for
NONSENSE = {
    "None": None,
    "a number": 3,
    "a float": 0.5,
    "text": "conv2d",
    "a class": nn.Conv2d,
    "a dictionary": {},
    "an object": object(),
    "a spec": conv2d(2, 2, 3),
    "a set": {1, 2},
}
TENSORS = {
    "a number in a tensor": torch.tensor(1.0),
    "whole numbers": torch.zeros(7, 2, dtype=torch.int64),
    "truth values": torch.zeros(7, 2, dtype=torch.bool),
    "one axis": torch.zeros(3),
    "another size": torch.zeros(5, 9),
    "seven axes": torch.zeros((1,) * 7),
}
MAPS = "takes a linear map, layer.at\\(domain\\), or a layer"
MODELS = "takes a model|takes a torch module|takes a layer"

# function -> (a call of it with one argument in question, what its sentence speaks of)
MAP_QUESTIONS = {
    name: (getattr(analysis, name), MAPS)
    for name in (
        "matrix",
        "norm",
        "norm_bound",
        "singular_values",
        "receptive_field",
        "adjoint_gap",
        "frequency_response",
    )
}
QUESTIONS = {
    **MAP_QUESTIONS,
    "plot_matrix": (analysis.plot_matrix, MAPS),
    "plot_response": (analysis.plot_response, MAPS),
    "cost": (lambda A: analysis.cost(A, IMAGE), "cost takes a layer or a linear map"),
    "parameter_count": (analysis.parameter_count, "parameter_count takes a layer or a model"),
    "lipschitz_bound": (lambda m: analysis.lipschitz_bound(m, (2, 5, 5)), MODELS),
    "effective_receptive_field": (lambda m: analysis.effective_receptive_field(m, (2, 5, 5)), MODELS),
    "affine": (lambda m: analysis.affine(m, IMAGE), MODELS),
    "total_influence": (lambda m: analysis.total_influence(m, SIGNAL, ring()), MODELS),
    "equivariance_error": (lambda m: analysis.equivariance_error(m, "shift", IMAGE), MODELS),
    "energy_by_depth": (
        lambda m: analysis.energy_by_depth(m, SIGNAL, ring()),
        "energy_by_depth takes layers in a row|energy_by_depth: model",
    ),
    "clip_singular_values": (
        lambda m: analysis.clip_singular_values(m, GRID, 1.0),
        "clip_singular_values takes a layer",
    ),
    "spectral_normalise": (lambda m: analysis.spectral_normalise(m, GRID), "spectral_normalise takes a layer"),
    "SpectralNorm": (lambda m: analysis.SpectralNorm(m, GRID), "SpectralNorm is for the weight of a GConv"),
    "dirichlet_energy": (lambda x: analysis.dirichlet_energy(x, ring()), "dirichlet_energy takes a signal x"),
    "mean_average_distance": (analysis.mean_average_distance, "mean_average_distance takes a signal x"),
    "effective_resistance": (analysis.effective_resistance, "graph"),
    "plot_spectrum": (analysis.plot_spectrum, r"plot_spectrum takes singular values \(s,\)"),
    "plot_receptive_field": (analysis.plot_receptive_field, r"plot_receptive_field takes a field \(n,\) or \(h, w\)"),
    "plot_energy": (analysis.plot_energy, r"plot_energy takes energies \(layers \+ 1,\)"),
    "Shift": (analysis.Shift, r"Shift takes steps along each axis, such as Shift\(\(1, 1\)\)"),
    "Flip": (analysis.Flip, r"Flip takes axes, such as Flip\(\(-1,\)\)"),
    "Rot90": (lambda q: analysis.Rot90(q), "Rot90 takes a number of quarter turns"),
    "Permutation": (analysis.Permutation, "Permutation takes the new number of each node"),
}
RIGHT = {("Rot90", "a number"), ("plot_response", "a response")}


@pytest.fixture(autouse=True)
def no_window():
    matplotlib.use("Agg")


def one_sentence(error):
    """An error of ours: about the call, in words, and short."""
    text = str(error)
    assert type(error) in (TypeError, ValueError) or isinstance(error, ValueError), repr(error)
    assert text[:1].isupper() or re.match(r"[a-z_A-Z0-9]+:? ", text), text
    assert text.endswith((".", ")")) and len(text) < 400, text
    for raw in (
        "object has no attribute",
        "unsupported operand",
        "not iterable",
        "positional argument",
        "NoneType' object",
    ):
        assert raw not in text, text


def test_every_public_function_is_listed():
    named = set(analysis.__all__) - {"Affine", "Response"}
    assert named == set(QUESTIONS)


@pytest.mark.parametrize("name", QUESTIONS)
def test_values_of_another_type_are_refused(name):
    call, sentence = QUESTIONS[name]
    for what, value in NONSENSE.items():
        if (name, what) in RIGHT:
            continue
        with pytest.raises((TypeError, ValueError), match=sentence) as caught:
            call(value)
        one_sentence(caught.value)


@pytest.mark.parametrize("name", QUESTIONS)
def test_tensors_of_another_dtype_are_refused(name):
    """A tensor is no map and no model; where a tensor is due, it must have the right shape and type."""
    call, _ = QUESTIONS[name]
    fine = {
        "plot_matrix": {"whole numbers", "truth values", "another size"},
        "plot_spectrum": {"one axis"},
        "plot_energy": {"one axis"},
        "plot_receptive_field": {"one axis", "whole numbers", "truth values", "another size"},
        "mean_average_distance": {"another size"},
    }
    for what, value in TENSORS.items():
        if what in fine.get(name, ()):
            continue
        with pytest.raises((TypeError, ValueError)) as caught:
            call(value)
        one_sentence(caught.value)


@pytest.mark.parametrize("name", MAP_QUESTIONS)
def test_a_layer_in_place_of_a_map_works_or_names_what_is_missing(name):
    question = getattr(analysis, name)
    for layer, called in ((CONV, "conv2d"), (nn.Conv2d(2, 2, 3), "Conv2d"), (GConv(gcn(2, 2)), "gcn")):
        with pytest.raises(
            TypeError, match=rf"{name} takes a linear map, and {called} is a map only on a domain"
        ) as caught:
            question(layer)
        one_sentence(caught.value)
    with pytest.raises((TypeError, ValueError)) as caught:
        question(nn.ReLU(), domain=GRID)
    one_sentence(caught.value)
    for domain in (3, "grid", object(), nn.ReLU()):
        with pytest.raises((TypeError, ValueError), match=r"graph|grid") as caught:
            question(CONV, domain=domain)
        one_sentence(caught.value)
    for parameter in ("domain", "x"):
        assert parameter in inspect.signature(question).parameters


def test_layers_are_drawn_where_their_domain_is_given():
    import matplotlib.pyplot as plt

    for axis in (
        analysis.plot_matrix(CONV, domain=GRID),
        analysis.plot_matrix(nn.Conv2d(1, 1, 3, dtype=torch.complex64), domain=GRID),
        analysis.plot_response(CONV, domain=GRID),
        analysis.plot_response(GConv(gcn(2, 2)), domain=ring()),
        analysis.plot_response(GConv(gcn(2, 2)).at(ring())),
    ):
        assert axis.has_data()
        plt.close(axis.figure)
    for plot, value in ((analysis.plot_matrix, identity(3)), (analysis.plot_energy, torch.ones(2))):
        with pytest.raises(TypeError, match="ax must be a matplotlib axis, but a str"):
            plot(value, "ax")
        with pytest.raises(TypeError, match="ax must be a matplotlib axis, but a module"):
            plot(value, plt)
    empty = Graph(torch.zeros(2, 0, dtype=torch.int64), size=0)
    for spec in (gcn(1, 13), sage(2, 2)):
        with pytest.raises(ValueError, match="A graph without nodes has no eigenvalues"):
            analysis.plot_response(GConv(spec), domain=empty)
    assert not plt.get_fignums()  # a refused picture leaves no empty window


OTHERS = {
    "k": lambda v: analysis.singular_values(CONV.at(GRID), v),
    "eigenvalues": lambda v: analysis.singular_values(GConv(gcn(2, 2)).at(ring()), eigenvalues=v),
    "frequencies": lambda v: analysis.frequency_response(CONV, GRID, v),
    "frequencies of a graph": lambda v: analysis.frequency_response(GConv(gcn(2, 2)), ring(), v),
    "layout": lambda v: analysis.matrix(CONV.at(GRID), v),
    "tol": lambda v: analysis.norm(CONV.at(GRID), v),
    "steps": lambda v: analysis.norm(CONV.at(GRID), 1e-8, v),
    "top": lambda v: analysis.clip_singular_values(CONV, GRID, v),
    "iterations": lambda v: analysis.clip_singular_values(CONV, GRID, 1.0, iterations=v),
    "value": lambda v: analysis.spectral_normalise(CONV, GRID, v),
    "steps of SpectralNorm": lambda v: analysis.SpectralNorm(CONV, GRID, 1.0, v),
    "domain of clipping": lambda v: analysis.clip_singular_values(CONV, v, 1.0),
    "domain of normalising": lambda v: analysis.spectral_normalise(CONV, v),
    "input of a bound": lambda v: analysis.lipschitz_bound(CONV, v),
    "rules": lambda v: analysis.lipschitz_bound(CONV, (2, 5, 5), rules=v or 5),
    "input of a field": lambda v: analysis.effective_receptive_field(CONV, v),
    "site": lambda v: analysis.effective_receptive_field(CONV, (2, 5, 5), v or "middle"),
    "draws": lambda v: analysis.effective_receptive_field(CONV, (2, 5, 5), draws=v),
    "signal of influence": lambda v: analysis.total_influence(GConv(gcn(2, 2)), v, ring()),
    "targets": lambda v: analysis.total_influence(GConv(gcn(2, 2)), SIGNAL, ring(), v or "all"),
    "pairs of nodes": lambda v: analysis.effective_resistance(ring(), v or "all"),
    "graph of an energy": lambda v: analysis.dirichlet_energy(SIGNAL, v),
    "normalization": lambda v: analysis.dirichlet_energy(SIGNAL, ring(), v or "row"),
    "graph of distances": lambda v: analysis.mean_average_distance(SIGNAL, v or 5),
    "signal of depth": lambda v: analysis.energy_by_depth([GConv(gcn(2, 2))], v, ring()),
    "graph of depth": lambda v: analysis.energy_by_depth([GConv(gcn(2, 2))], SIGNAL, v),
    "a layer of depth": lambda v: analysis.energy_by_depth([v], SIGNAL, ring()),
    "input of a cost": lambda v: analysis.cost(CONV, v),
    "signal of a cost": lambda v: analysis.cost(CONV.at(GRID), v or "x"),
    "action": lambda v: analysis.equivariance_error(CONV, v, IMAGE),
    "signal of an action": lambda v: analysis.equivariance_error(CONV, "shift", v),
    "out": lambda v: analysis.Shift((1, 1), v or "x"),
    "channels": lambda v: analysis.plot_response(analysis.frequency_response(CONV, GRID), pairs=v or 5),
    "grid of a field": lambda v: analysis.plot_receptive_field(torch.ones(6), shape=v or 5),
    "positions": lambda v: analysis.plot_receptive_field(torch.ones(6), pos=v or 5),
}
VALID = {
    ("k", "None"), ("eigenvalues", "None"), ("frequencies", "None"), ("frequencies of a graph", "None"),
    ("tol", "a number"), ("tol", "a float"), ("steps", "a number"), ("top", "a number"), ("top", "a float"),
    ("k", "a number"), ("iterations", "a number"), ("value", "a number"), ("value", "a float"), ("draws", "a number"),
    ("steps of SpectralNorm", "a number"), ("targets", "a number"), ("rules", "a dictionary"),
    ("input of a bound", "a set"), ("input of a field", "a set"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_argument_is_checked(name):
    for what, value in NONSENSE.items():
        if (name, what) in VALID:
            continue
        with pytest.raises((TypeError, ValueError)) as caught:
            OTHERS[name](value)
        one_sentence(caught.value)


def test_tensors_of_wrong_shapes_are_refused():
    layer, x = GConv(gcn(2, 2)), SIGNAL
    for call in (
        lambda: analysis.dirichlet_energy(torch.zeros(6, 2), ring()),
        lambda: analysis.mean_average_distance(torch.zeros(6, 2), ring()),
        lambda: analysis.mean_average_distance(torch.zeros(2, 6, 2)),
        lambda: analysis.total_influence(layer, torch.zeros(6, 2), ring()),
        lambda: analysis.total_influence(layer, x, ring(), [9]),
        lambda: analysis.total_influence(layer, x, ring(), torch.tensor([0.5])),
        lambda: analysis.total_influence(layer, x),
        lambda: analysis.total_influence(lambda z: (z, z), x),
        lambda: analysis.effective_resistance(ring(), torch.tensor([[0], [9]])),
        lambda: analysis.effective_resistance(ring(), torch.tensor([[0.5], [1]])),
        lambda: analysis.effective_resistance(torch.zeros(3)),
        lambda: analysis.effective_receptive_field(CONV, (2, 5, 5), (1,)),
        lambda: analysis.effective_receptive_field(CONV, (2, 5, 5), 0.5),
        lambda: analysis.effective_receptive_field(CONV, ()),
        lambda: analysis.frequency_response(CONV, GRID, torch.zeros(4, 3)),
        lambda: analysis.frequency_response(CONV, GRID, torch.zeros(4, 2, dtype=torch.complex64)),
        lambda: analysis.frequency_response(layer, ring(), torch.zeros(4, 2)),
        lambda: analysis.singular_values(layer.at(ring()), eigenvalues=torch.zeros(3)),
        lambda: analysis.cost(CONV.at(GRID), torch.zeros(3, 3)),
        lambda: analysis.cost(nn.Sequential(CONV), IMAGE),
        lambda: analysis.cost(nn.ReLU(), IMAGE),
        lambda: analysis.equivariance_error(layer, analysis.Permutation((1, 0)), x, ring()),
        lambda: analysis.Permutation((0, 0, 1)),
        lambda: analysis.plot_response(analysis.frequency_response(CONV, GRID), pairs=[(0, 7)]),
        lambda: analysis.plot_receptive_field(torch.ones(6), shape=(4, 4)),
        lambda: analysis.plot_receptive_field(torch.ones(6), pos=torch.zeros(5, 2)),
        lambda: analysis.lipschitz_bound(nn.Sequential(layer), (7, 2)),
        lambda: analysis.lipschitz_bound(layer, (7, 3), ring()),
        lambda: analysis.clip_singular_values(nn.Conv2d(2, 2, 3, stride=2), GRID, 1.0),
        lambda: analysis.norm(CONV, domain=Graph(torch.tensor([[0], [1]]))),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        one_sentence(caught.value)


def test_a_bound_refuses_a_batch():
    for layer in (nn.Conv2d(2, 2, 3), CONV):
        with pytest.raises(InputError, match=r"adds a batch axis to its input x, here of shape \(4, 2, 5, 5\)"):
            analysis.lipschitz_bound(nn.Sequential(layer, nn.ReLU()), torch.zeros(4, 2, 5, 5))
