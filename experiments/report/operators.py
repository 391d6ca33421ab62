"""The tables of operators in docs/operators.md, generated from the registry by `python -m experiments.tables`.

One table per family. An operator whose docstring only refers to another one ("see `conv2d` for details") is listed in
the same line. Between separate markers follow the layers outside the family, with the reasons that gconv itself gives.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from experiments.harness.render import TableError
from gconv import list_operators
from gconv.basis import Basis, Polynomial, Stack
from gconv.interop import preview
from gconv.operators.outside import OUTSIDE
from gconv.spec import Operator, operator
from gconv.testing import Case

OPERATORS, LEFT_OUT = "operators", "outside"
HEAD = ("operator", "equation", "S", "S is", "linear", "lowerings")
GRIDS, FILTERS = "Grids", "Graphs: polynomials and spectra"
STEP, TOLD_APART = "Graphs: one hop", "Graphs: edge types and edge features"
ATTENTION = "Graphs: attention (S depends on x)"
FAMILIES = (GRIDS, STEP, FILTERS, TOLD_APART, ATTENTION)
LABELLED = {  # one hop, with matrices that depend on the label, position, features, degree or direction of edges
    "directed", "hypergraph", "mf", "monet", "nnconv", "pdn", "relational", "selection", "signed", "spline",
}  # fmt: skip
LAYERS = {
    "LPPool": torch.nn.LPPool2d(2, 2),
    "FractionalMaxPool": torch.nn.FractionalMaxPool2d(2, 1),
    "MaxUnpool": torch.nn.MaxUnpool2d(2),
    "MaxPool(return_indices=True)": torch.nn.MaxPool2d(2, return_indices=True),
    "ConstantPad(1, 1.0)": torch.nn.ConstantPad2d(1, 1.0),
    "Bilinear": torch.nn.Bilinear(2, 2, 2),
    "MultiheadAttention": torch.nn.MultiheadAttention(2, 1),
}


@dataclass
class Traits:
    """Properties found in the samples of an operator, in order of occurrence."""

    forms: dict[str, None] = field(default_factory=dict)
    kinds: dict[str, None] = field(default_factory=dict)
    linear: set[bool] = field(default_factory=set)
    lowerings: dict[str, None] = field(default_factory=dict)

    def see(self, entry: Operator) -> None:
        """Add the samples of an operator."""
        for sample in entry.samples():
            case = Case.of(sample, torch.float64, batch=1)
            structure, theta = sample.spec.structure, dict(case.layer.named_parameters())
            with torch.no_grad():
                S = structure.basis(case.domain, theta, case.layer._call(case.signal))
            self.forms[form(S)] = None
            self.kinds[structure.kind] = None
            self.linear.add(S.linear)
            self.lowerings |= {name.split(":")[0]: None for name in case.lowerings if name != "dense"}

    def cells(self) -> list[str]:
        """The cells of the table."""
        linear = {(True,): "yes", (False,): "no", (False, True): "unless max"}[tuple(sorted(self.linear))]
        if "adaptive" in self.kinds:
            linear = "at a frozen x"
        return [", ".join(self.forms), ", ".join(self.kinds), linear, ", ".join(self.lowerings)]


def form(S: Basis) -> str:
    """The name of the form of a structure."""
    if isinstance(S, Stack):
        return " + ".join(dict.fromkeys(form(part) for part in S.parts))
    return f"Polynomial ({S.recurrence.name})" if isinstance(S, Polynomial) else type(S).__name__


def family(entry: Operator, traits: Traits) -> str:
    """The family under which an operator is listed.

    >>> entry = operator("cheb")
    >>> traits = Traits()
    >>> traits.see(entry)
    >>> family(entry, traits)
    'Graphs: polynomials and spectra'
    """
    if entry.samples()[0].spec.structure.domain != "graph":
        return GRIDS
    if "adaptive" in traits.kinds:
        return ATTENTION
    if {"recurrence", "gft"} & set(traits.lowerings):
        return FILTERS
    return TOLD_APART if entry.name in LABELLED else STEP


def code(text: str) -> str:
    """Text as code in a table cell.

    >>> print(code("a | b"), code("as in `unfold`"))
    `a \\| b` `` as in `unfold` ``
    """
    text = text.replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def equation(entry: Operator) -> str:
    """The equation in an operator's docstring up to its first semicolon, or else the first line of the docstring.

    >>> equation(operator("sgc"))
    'Y = S^k X W + b, S = D^-1/2 (A + I) D^-1/2'
    """
    text = inspect.getdoc(entry.factory) or entry.name
    found = re.search(r"^Equation: (.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    if found is None:
        return text.splitlines()[0]
    return re.split(r"(?<=\S)(?:; |\. (?=[A-Z]))", " ".join(found[1].split()))[0].rstrip(".")


def main_operator(entry: Operator) -> str:
    """The operator whose docstring documents this one: itself, or the one named in its first line.

    >>> main_operator(operator("conv1d")), main_operator(operator("gcn"))
    ('conv2d', 'gcn')
    """
    found = re.search(r"see `(\w+)` for details", (inspect.getdoc(entry.factory) or "").splitlines()[0])
    return found[1] if found else entry.name


def markdown(head: tuple[str, ...], body: list[list[str]], left: tuple[str, ...] = ()) -> str:
    """A markdown table; the site reserves the width of a sentence for columns that are aligned left."""
    rule = [":---" if name in left else "---" for name in head]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *body])


def table() -> str:
    """The tables as markdown: one per family, one line per operator."""
    groups: dict[str, list[Operator]] = {}
    for name in list_operators():
        groups.setdefault(main_operator(operator(name)), []).append(operator(name))
    families: dict[str, list[list[str]]] = {name: [] for name in FAMILIES}
    for name, entries in groups.items():
        traits, entry = Traits(), operator(name)
        for member in entries:
            traits.see(member)
        label = ", ".join(f"`{member}`" for member in [name, *(e.name for e in entries if e.name != name)])
        families[family(entry, traits)].append([label, code(equation(entry)), *traits.cells()])
    return "\n\n".join(
        f"**{name}**\n\n{markdown(HEAD, body, left=('equation',))}" for name, body in families.items() if body
    )


def left_out() -> str:
    """Layers outside the family and the reasons: convolutions of PyG, and gconv's notes on layers of torch.nn.

    Raises:
        TableError: if gconv can convert one of them.
    """
    lines = [[f"`{name}`", reason] for name, reason in OUTSIDE.items()]
    for name, layer in LAYERS.items():
        (answer,) = preview(layer)
        if answer.converted:
            raise TableError(f"{name} is listed as outside, but gconv converts it")
        lines.append([f"`{name}`", f"{answer.notes[0][0].upper()}{answer.notes[0][1:]}."])
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return markdown(("layer", "reason"), lines)


def fill(text: str) -> str:
    """`text` with its operator tables rendered again.

    Raises:
        TableError: if a marker has no counterpart.
    """
    return between(between(text, OPERATORS, table), LEFT_OUT, left_out)


def between(text: str, name: str, body: Callable[[], str]) -> str:
    """`text` with `body()` between `<!-- name -->` and `<!-- /name -->`; unchanged if there are no such lines.

    Raises:
        TableError: if one of the two markers is missing.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in text and end not in text:
        return text
    if not (text.count(start) == text.count(end) == 1 and text.index(start) < text.index(end)):
        raise TableError(f"{start} and {end} must stand once each, in this order")
    return f"{text[: text.index(start)]}{start}\n\n{body()}\n\n{text[text.index(end) :]}"
