"""Arguments of operators: numbers of any library, errors that name the operator and the argument, bounded reading."""

import inspect
import warnings
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from gconv import GConv, Graph, Grid, OperatorSpec, cite, list_operators
from gconv import spec as registry
from gconv.analysis import receptive_field
from gconv.arguments import checked
from gconv.basis import Identity
from gconv.mixing import Dense
from gconv.operators import cheb, conv2d, gat, gcn, global_pool, mixhop, wl_continuous
from gconv.spec import GraphStructure, GridStructure, Parameter, Structure, operator, register

INDEX = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])

WRONG = [
    None, True, 0, -1, 2**62, 2**70, 0.5, -1.5, 1e308, float("inf"), float("nan"), 1j, "", "magic", "2", "a" * 999,
    b"x", [], [1, 2, 3], [[[1]]], {}, {"a": 1}, set(), object(), int, torch.tensor([1, 2]),
    torch.empty(2, device="meta"), np.float32(0.5), np.array([1.5, 2]), Fraction(1, 2), range(5),
]  # fmt: skip


def samples(name):
    return [sample.spec for sample in operator(name).samples()]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", list_operators())
def test_any_argument_gives_a_spec_or_a_message(name):
    """Whatever is given for an argument, the answer is a spec that survives printing, or a ValueError or TypeError."""
    factory, base = operator(name).factory, dict(samples(name)[0].arguments)
    for argument in inspect.signature(factory).parameters:
        for value in WRONG:
            if isinstance(value, float) and value > 1e300 and argument in ("t", "s"):
                continue  # how far a diffusion may go is its own question
            if isinstance(value, int) and value == 2**62 and argument in ("k", "t"):
                continue  # and so is the largest degree
            try:
                spec = factory(**{**base, argument: value})
            except (ValueError, TypeError) as error:
                text = str(error)
                assert text.endswith(".") and "\n" not in text and len(text) < 600, f"not a sentence: {text}"
                assert "does not accept" not in text, text
            else:
                assert OperatorSpec.parse(repr(spec)) == spec and OperatorSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", list_operators())
@pytest.mark.parametrize(
    "number", [np.int64, np.int8, np.int16, torch.tensor], ids=["int64", "int8", "uint16", "torch"]
)
def test_integers_of_other_libraries_are_integers(name, number):
    def foreign(value: Any) -> Any:
        if isinstance(value, tuple):
            return [foreign(part) for part in value]
        return number(value) if type(value) is int and value < 100 else value

    for spec in samples(name):
        made = operator(name).factory(**{key: foreign(value) for key, value in spec.arguments})
        assert made == spec and repr(made) == repr(spec) and made.to_dict() == spec.to_dict()
        assert all(type(value) in (int, float, bool, str, tuple, type(None)) for _, value in made.arguments)


def test_numbers_of_numpy_in_floats_flags_and_arrays():
    assert gat(3, 2, negative_slope=np.float32(0.5), concat=np.bool_(False)) == gat(
        3, 2, negative_slope=0.5, concat=False
    )
    assert conv2d(1, 2, np.array([3, 5]), bias=0) == conv2d(1, 2, (3, 5), bias=False)
    assert mixhop(2, 2, powers=range(3)) == mixhop(2, 2, powers=(0, 1, 2))


NAMED = [
    (lambda: cheb(3, 2, K=3), r"cheb: unknown 'K'; did you mean 'k'\? Its arguments are in_channels"),
    (lambda: cheb(3, 2, normalisation="rw", k=2), "cheb: unknown 'normalisation'; did you mean 'normalization'"),
    (lambda: cheb(3, 2), "cheb: 'k' is missing"),
    (lambda: cheb(3), "cheb: 'out_channels' and 'k' are missing"),
    (lambda: gcn(3, 2, in_channels=1), "gcn: 'in_channels' is given twice"),
    (lambda: wl_continuous(3), "wl_continuous: 1 arguments were given by position, but it takes no arguments"),
    (lambda: gcn(3, 2)(torch.zeros(3, 3), INDEX), r"gcn\(3, 2\) is a spec, .* layer = GConv\(gcn\(3, 2\)\)"),
    (lambda: GConv(gcn, 3, 2), r"not the function that makes one: write GConv\(gcn\(3, 2\)\)"),
    (lambda: GConv(gcn(3, 2), 3, 2), "GConv takes one spec, but it was given"),
    (lambda: GConv(gcn(3, 2)).plan(), "GConv.plan: 'x' is missing; its arguments are x, domain, lowering, measure"),
    (lambda: GConv(gcn(3, 2), dtype=torch.int64), "GConv: dtype must be a floating point type.* but it is torch.int64"),
    (lambda: receptive_field(3, 4), "2 arguments were given by position, .* A, domain, x; domain, x by name only"),
    (
        lambda: Graph(INDEX, 3, *[None] * 9),
        "Graph: 11 arguments were given by position, but its arguments are edge_ind",
    ),
    (lambda: Grid(6, 6), r"Grid takes one shape, such as Grid\(\(32, 32\)\), but 2 arguments were given"),
    (
        lambda: GConv(gcn(3, 3)).at(Graph(INDEX)) + 3,
        r"A \+ B takes two linear maps, but 3 was given; c \* A.I is a mul",
    ),
    (lambda: GConv(conv2d(1, 1, 3)).at((6, 6)), r"conv2d works on a grid, such as Grid\(\(32, 32\)\), but a tuple"),
]


@pytest.mark.parametrize(("act", "message"), NAMED, ids=[message[:24] for _, message in NAMED])
def test_wrong_calls_name_the_operator_and_the_word(act, message):
    with pytest.raises(TypeError, match=message) as caught:
        act()
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "gcn(2, 2, **{})", "gcn(2, 2, bias={[]: 1})", "gcn(*[2, 2])", "gcn", "gcn()()", "-" * 3000 + "1", "gcn(2, 2",
        "cheb(" + "(" * 3000 + ")" * 3000 + ")", "cheb(2, 2, k=" + "9" * 5000 + ")", "cheb(2, 2, k=1e999)", "\0", "",
        "cheb(2, 2, k=" + "9" * 300 + ")", "conv2d(1, 1, " + "(" * 50 + "3" + ",)" * 50 + ")", None, b"gcn(2, 2)", 3,
    ],
    ids=range(17),
)  # fmt: skip
def test_parse_of_any_text_gives_a_spec_or_a_message(text):
    with pytest.raises((ValueError, TypeError)) as caught:
        OperatorSpec.parse(text)
    assert str(caught.value).endswith(".") and len(str(caught.value)) < 300


def nested(depth: int) -> list[Any]:
    found: list[Any] = [3]
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    "data",
    [
        [], None, "gcn(2, 2)", {"operator": []}, {"operator": "gcn", 3: 4}, {"operator": "gcn", "in_channels": {}}, {},
        {"operator": "conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": nested(10000)},
    ],
    ids=range(8),
)  # fmt: skip
def test_from_dict_of_any_value_gives_a_spec_or_a_message(data):
    with pytest.raises((ValueError, TypeError)) as caught:
        OperatorSpec.from_dict(data)
    assert str(caught.value).endswith(".") and "Error" not in str(caught.value)
    with pytest.raises((ValueError, TypeError), match=r"no operator named|spec must be an OperatorSpec or a string"):
        cite(data if not isinstance(data, str) else data[:2])


@dataclass(frozen=True)
class Same(GraphStructure):
    """A structure of a user: every node keeps its own signal."""

    taps = 1

    def basis(self, domain, theta, call):
        return Identity(domain.size)


def test_a_spec_without_a_registered_operator_prints_plans_and_trains():
    layer = GConv(OperatorSpec("idea", (("width", 3),), Same(), Dense(1, 2, 3)))
    assert repr(layer) == "GConv(idea(width=3))"
    x, graph = torch.randn(3, 2, requires_grad=True), Graph(INDEX)
    assert "idea" not in list_operators() and "dense" in str(layer.plan(x, graph))
    layer(x, graph).sum().backward()
    assert layer.weight.grad is not None and x.grad is not None
    with pytest.raises(ValueError, match="no operator named 'idea'"):
        OperatorSpec.from_dict(layer.spec.to_dict())


M = Dense(1, 2, 3)


def broken(**members):
    return type("Broken", (Same,), members)()


def basis_of_none(self, domain, theta, x):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("base", "members", "message"),
    [
        (object, vars(Same), ", must be derived from gconv.spec.GraphStructure or GridStructure"),
        (GraphStructure, {}, "has no taps; a structure needs taps, domain"),
        (GridStructure, {"taps": 1, "target": None}, "has no ndim; a structure needs taps, domain, ndim"),
        (Structure, {"taps": 1, "target": None}, "has no domain; a structure needs taps, domain"),
    ],
)
def test_a_structure_without_a_member_is_refused(base, members, message):
    members = {key: value for key, value in members.items() if key not in ("__dict__", "__weakref__")}
    structure = type("Broken", (base,), {"basis": basis_of_none, **members})()
    with pytest.raises(TypeError, match=f"idea: its structure, a Broken.*{message}"):
        OperatorSpec("idea", (), structure, Dense(1, 2, 3))


@pytest.mark.parametrize(("base", "method"), [(GraphStructure, "basis"), (GridStructure, "target")])
def test_a_structure_without_a_method_cannot_be_made(base, method):
    members = {"taps": 1, "ndim": 2, "basis": basis_of_none, "target": None}
    with pytest.raises(TypeError, match=method):
        type("Broken", (base,), {key: value for key, value in members.items() if key != method})()


def test_a_structure_without_a_hash_is_refused():
    with pytest.raises(TypeError, match=r"cannot be hashed.*make it a frozen dataclass"):
        OperatorSpec("idea", (), broken(__hash__=None), Dense(1, 2, 3))


@pytest.mark.parametrize("kind", ["fixed", "learned", "adaptive"])
@pytest.mark.parametrize(
    ("basis", "what"),
    [
        (lambda self, domain, theta, call: torch.eye(domain.size), "a Tensor"),
        (lambda self, domain, theta, call: None, "None"),
        (lambda self, domain, theta, call: cheb(1, 1, 4).structure.basis(Graph(INDEX), {}, call), "4 taps"),
    ],
    ids=["dense", "None", "too many taps"],
)
def test_a_basis_of_another_type_is_refused(kind, basis, what):
    layer = GConv(OperatorSpec("idea", (), broken(kind=kind, basis=basis), Dense(1, 2, 3)))
    with pytest.raises(TypeError, match=f"The basis of Broken must be a stack of 1 sparse matrices.*but it is {what}"):
        layer(torch.zeros(3, 2), Graph(INDEX))


@pytest.mark.parametrize("kind", ["fixed", "learned", "adaptive"])
@pytest.mark.parametrize(("extra", "size"), [(1, "4 x 4"), (-1, "2 x 2")])
def test_a_basis_of_another_size_is_refused(kind, extra, size):
    layer = GConv(OperatorSpec("idea", (), broken(kind=kind, basis=lambda s, d, t, c: Identity(d.size + extra)), M))
    with pytest.raises(TypeError, match=f"The basis of Broken on .* must hold matrices of 3 x 3 .*they are {size}"):
        layer(torch.zeros(3, 2), Graph(INDEX))


@pytest.mark.parametrize("target", [None, 3, torch.zeros(3)])
def test_a_target_of_another_type_is_refused(target):
    layer = GConv(OperatorSpec("idea", (), broken(target=lambda self, domain: target), M))
    with pytest.raises(TypeError, match="The target of Broken must be a Grid or a Graph, but it is"):
        layer(torch.zeros(3, 2), Graph(INDEX))


@pytest.mark.parametrize("learned", [None, [1], {"a": torch.ones(3)}, {"a": (3,)}])
def test_parameters_of_another_type_are_refused(learned):
    with pytest.raises(TypeError, match=r"idea: parameters\(\) of its structure, a Broken, must return a dict"):
        OperatorSpec("idea", (), broken(kind="learned", parameters=lambda self: learned), M)


def define(name="twice", module=__name__, bias=False):
    def make(in_channels: int):
        return Same(), Dense(1, in_channels, 1), bias

    make.__name__, make.__module__ = name, module
    return register(samples=lambda twice: [], citation="A cell of a notebook")(make)


def test_a_definition_that_is_run_again_replaces_the_former_with_a_warning(monkeypatch):
    monkeypatch.setattr(registry, "_OPERATORS", dict(registry._OPERATORS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = define()(2)
    with pytest.warns(UserWarning, match="The operator twice was defined before in .*test_arguments; this definition"):
        second = define(bias=True)
    assert OperatorSpec.parse("twice(2)").bias and second(2).bias and not first.bias
    with pytest.raises(ValueError, match=r"registered already, by gconv.operators.neighbourhood; choose another name"):
        define("gcn")


def test_grids_on_a_reader_that_works_anywhere():
    """A pool works on grids and graphs alike; the sentence for grids is only for operators that know no graph."""
    assert isinstance(GConv(global_pool()).at(Grid((2, 2))).shape, tuple)
    assert isinstance(GConv(global_pool()).at(INDEX).shape, tuple)


def test_a_learned_structure_declares_its_kind_and_parameters():
    weight = Parameter((1,), "constant", 0.5)
    with pytest.raises(ValueError, match=r"idea: its structure learns damping, so its kind must be 'learned'"):
        OperatorSpec("idea", (), broken(parameters=lambda self: {"damping": weight}), Dense(1, 2, 3))

    def basis(self, domain, theta, call):
        return theta["dampin"]

    members = {"parameters": lambda self: {"damping": weight}, "kind": "learned", "basis": basis}
    layer = GConv(OperatorSpec("idea", (), broken(**members), Dense(1, 2, 3)))
    with pytest.raises(ValueError, match=r"asks theta for 'dampin', but .* declares are: damping\."):
        layer(torch.zeros(3, 2), Graph(INDEX))


def test_an_argument_with_a_short_name_is_named_in_errors():
    """Its letter is part of words of other errors, such as "ndarray" or "index"."""

    @checked
    def rows(y: torch.Tensor, own: bool = False) -> torch.Tensor:
        if own:
            raise AttributeError("y is on another device")
        return y.detach()

    with pytest.raises(TypeError, match=r"rows: y must be a torch tensor, but it is a ndarray"):
        rows(torch.ones(2).numpy())
    with pytest.raises(AttributeError, match="y is on another device"):
        rows(torch.ones(2).numpy(), own=True)
