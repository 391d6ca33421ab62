"""The README's table of operators, generated from the registry: `python -m experiments.tables` writes it.

An operator whose docstring only says "`conv2d` says everything" is listed beside that one.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field

import torch

from experiments.render import TableError
from gconv import list_operators
from gconv.basis import Basis, Polynomial, Stack
from gconv.spec import Operator, operator
from gconv.testing import Case

START, END = "<!-- operators -->", "<!-- /operators -->"
HEAD = ("operator", "equation", "S", "S depends on", "linear", "lowerings", "source")
KINDS = {"fixed": "domain", "learned": "domain, parameters", "adaptive": "domain, parameters, x"}


@dataclass
class Traits:
    """What the samples of an operator show, in the order in which it is met."""

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
                S = structure.basis(case.domain, theta, case.signal)
            self.forms[form(S)] = None
            self.kinds[KINDS[structure.kind]] = None
            self.linear.add(S.linear)
            self.lowerings |= {name.split(":")[0]: None for name in case.lowerings}

    def cells(self) -> list[str]:
        """As they are printed."""
        linear = {(True,): "yes", (False,): "no", (False, True): "unless max"}[tuple(sorted(self.linear))]
        if KINDS["adaptive"] in self.kinds:
            linear = "frozen at an x"
        return [", ".join(self.forms), ", ".join(self.kinds), linear, ", ".join(self.lowerings)]


def form(S: Basis) -> str:
    """The form of a structure, in a word or two."""
    if isinstance(S, Stack):
        return " + ".join(form(part) for part in S.parts)
    return f"Polynomial ({S.recurrence.name})" if isinstance(S, Polynomial) else type(S).__name__


def equation(entry: Operator) -> str:
    """The equation in an operator's docstring, else the docstring's first line.

    >>> equation(operator("sgc"))
    'Y = S^k X W + b, S = D^-1/2 (A + I) D^-1/2'
    """
    text = inspect.getdoc(entry.factory) or entry.name
    found = re.search(r"^Equation: (.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    if found is None:
        return text.splitlines()[0]
    return re.split(r"(?<=\S)\. (?=[A-Z])", " ".join(found[1].split()))[0].rstrip(".")


def says_everything(entry: Operator) -> str:
    """The operator whose docstring also speaks for this one: itself, or the one that its first line names.

    >>> says_everything(operator("conv1d")), says_everything(operator("gcn"))
    ('conv2d', 'gcn')
    """
    found = re.search(r"`(\w+)` says everything", (inspect.getdoc(entry.factory) or "").splitlines()[0])
    return found[1] if found else entry.name


def table() -> str:
    """The table as markdown: a line an operator, grids first."""
    groups: dict[str, list[Operator]] = {}
    for name in list_operators():
        groups.setdefault(says_everything(operator(name)), []).append(operator(name))
    lines = []
    for name, entries in groups.items():
        traits, entry = Traits(), operator(name)
        for member in entries:
            traits.see(member)
        beside = [f"`{member.name}`" for member in entries if member.name != name]
        label = f"`{name}`" + (f" ({', '.join(beside)})" if beside else "")
        graph = entry.samples()[0].spec.structure.domain == "graph"
        lines.append((graph, [label, f"`{equation(entry)}`", *traits.cells(), entry.citation]))
    body = [[cell.replace("|", "\\|") for cell in line] for _, line in sorted(lines, key=lambda pair: pair[0])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [HEAD, ("---",) * len(HEAD), *body])


def fill(text: str) -> str:
    """`text` with the table between its two markers; unchanged where it has none. Raises: TableError for one alone."""
    if START not in text and END not in text:
        return text
    if not (text.count(START) == text.count(END) == 1 and text.index(START) < text.index(END)):
        raise TableError(f"{START} and {END} must stand once each, in this order")
    return f"{text[: text.index(START)]}{START}\n\n{table()}\n\n{text[text.index(END) :]}"
