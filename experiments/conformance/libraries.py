"""Graph libraries apply different matrices to the same graph; gconv reproduces those that its options cover to 1e-9.

Protocol: the matrix S[target, source] that each convention applies to signals, in float64, on a five-node graph with
all special cases (a directed edge from a node without incoming edges, a weight, a self-loop, a double edge, an
isolated node), and on an undirected graph without them. Installed libraries are run on identity features. The others
are not run; their formula is taken from their published code or documentation and written as a `Rule`. Libraries that
are run are also compared with their rule, so the stated differences between conventions are verified. Which special
case makes two conventions differ is determined by adding one at a time to the plain graph. Libraries that read
A[source, target] (networkx, scipy, Kipf, Spektral) get the matrix that networkx writes, with double edges summed. The
conventions are listed in `experiments.conformance.peers`.

    python -m experiments.conformance                   tables, matrices, rows and a figure; exit status 1 if gconv or
                                                        a library does not follow its rule
    python -m experiments.conformance --only gcn        one family, no figure

`differ(layer_a, layer_b, graph)` returns the entries in which the matrices of two layers differ.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from experiments.conformance.layers import Difference, applied, differ
from experiments.conformance.peers import CONVENTIONS, Convention, families
from experiments.conformance.rules import (
    SAME,
    Rule,
    by_rule,
    differences,
    eigsh_spread,
    everything,
    features,
    listed,
    plain,
    top_eigenvalue,
)
from experiments.harness import common
from experiments.harness.machine import ROOT, versions

STARTS = 20

__all__ = ["CONVENTIONS", "Convention", "Difference", "Rule", "applied", "by_rule", "differ", "everything", "plain"]


def parts_on(a: Convention, b: Convention) -> list[str]:
    """The special cases on which two conventions differ, found by running both: "plain", or additions to that graph."""
    if differ(a.matrix, b.matrix, plain(), SAME).entries:
        return ["plain"]
    return [name for name, graph in features().items() if differ(a.matrix, b.matrix, graph, SAME).entries]


@dataclass(frozen=True)
class Options:
    """Options."""

    only: str = ""
    """Run only families whose name contains this text; empty for all."""
    figures: Path | None = None
    """Folder for the figure (default: next to the rows; with --official, experiments/figures)."""


@dataclass(frozen=True)
class Config:
    """One convention."""

    family: str
    peer: str
    convention: str


def run(config: Config) -> common.Outcome:
    """The matrices of a convention, and its differences from the first of its family."""
    members = families()[config.family]
    first, mine = members[0], next(c for c in members if c.name == config.peer)
    metrics: dict[str, Any] = {"known": mine.known, "who": mine.who, "in_gconv": mine.ours or "no option"}
    gaps, rule_gaps = [], []
    for name, graph in (("everything", everything()), ("plain", plain())):
        S, ours = mine.matrix(graph), mine.in_gconv(graph)
        metrics[f"matrix_{name}"] = S
        metrics[name] = differ(first.matrix, mine.matrix, graph, SAME).largest
        rule_gaps.append(abs(S - by_rule(mine.rule, graph)).max())
        gaps.append(0.0 if ours is None else abs(S - ours).max())
    said = differences(first.rule, mine.rule, everything())
    metrics |= {"gap_to_gconv": max(gaps), "gap_to_rule": max(rule_gaps), "terms_k3": mine.k3 and mine.k3[0]}
    metrics |= {"differs_in": "; ".join(said) or ("-" if mine is first else "nothing")}
    metrics |= {"parts_on": ", ".join(parts_on(first, mine)) or "-"}
    return common.Outcome(metrics)


@cache
def state() -> common.Data:
    """The two graphs, this script, gconv's conventions, and the versions of the installed libraries."""
    digest = hashlib.sha256(repr([listed(plain()), listed(everything())]).encode())
    ours = sorted((ROOT / "experiments").glob("conformance*.py"))
    for path in (*ours, ROOT / "gconv" / "laplacian.py"):
        digest.update(path.read_bytes())
    digest.update(repr(sorted(versions().items())).encode())
    return common.Data("two five-node graphs", digest.hexdigest()[:16])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Raises: SystemExit if gconv or a library does not follow its rule."""
    options, how = common.cli(Options, __doc__, argv)
    chosen = [c for c in CONVENTIONS if options.only in c.family]
    if not chosen:
        raise SystemExit(f"error: no family has {options.only!r} in its name; they are {', '.join(families())}")
    results = how.open("conformance")
    try:
        if any(row.get("data") != state()._asdict() for row in results.rows()):
            results.probe()
            results.path.unlink()
    except (OSError, common.ResultsError) as problem:
        raise SystemExit(f"error: {problem}") from problem
    todo = [Config(c.family, c.name, f"{c.family}: {c.name}") for c in chosen]
    rows = common.sweep(todo, run, results, experiment="conformance", data=state(), jobs=how.jobs)
    report(rows)
    if not options.only:
        from experiments.conformance.picture import draw

        beside = ROOT / "experiments" / "figures" if how.official else results.path.parent
        print(f"drew {draw(rows, options.figures or beside)}")
    wrong = [
        f"{row['config']['convention']}: {what.replace('_', ' ')} {row['metrics'][what]:.1e}"
        for row in rows
        for what in ("gap_to_rule", "gap_to_gconv")
        if not row["metrics"][what] <= SAME
    ]
    if wrong:
        raise SystemExit("error: not what is said here:\n" + "\n".join(wrong))


def report(rows: Sequence[common.Row]) -> None:
    """Print matrices, pairwise differences and their causes, for each family."""
    from tabulate import tabulate

    by_family: dict[str, list[common.Row]] = {}
    for row in rows:
        by_family.setdefault(row["config"]["family"], []).append(row)
    for family, members in by_family.items():
        print(f"\n== {family} ==")
        names = [row["config"]["peer"] for row in members]
        for row in members:
            m = row["metrics"]
            print(f"\n{row['config']['peer']}: {m['who']}, {m['known']}; in gconv: {m['in_gconv']}")
            sides = (m["matrix_everything"], m["matrix_plain"])
            for number, (left, right) in enumerate(zip(*sides, strict=True)):
                head = f"  node {number} gets " if number == 0 else " " * 14
                print(
                    head.ljust(15) + "   |  ".join("".join(f"{_three(v):>8}" for v in line) for line in (left, right))
                )
        for graph in ("everything", "plain"):
            print(f"\nlargest difference of any two, on the graph {graph!r}:")
            matrices = [np.array(row["metrics"][f"matrix_{graph}"]) for row in members]
            table = [
                [name, *(_three(abs(a - b).max()) for b in matrices)] for name, a in zip(names, matrices, strict=True)
            ]
            print(tabulate(table, ["", *map(str, range(1, len(names) + 1))], disable_numparse=True, showindex=False))
        said = [
            [n, row["metrics"]["parts_on"], row["metrics"]["differs_in"]] for n, row in zip(names, members, strict=True)
        ]
        print(f"\nagainst {names[0]}:")
        print(tabulate(said[1:], ["", "parts on", "differs in"], disable_numparse=True))
    terms = [[c.family, c.name, f"{c.k3[1]} = 3", c.k3[0]] for c in CONVENTIONS if c.k3 and c.family in by_family]
    if terms:
        print("\n== matrices in the sum, where the argument says 3 ==\n")
        print(tabulate(terms, ["family", "", "argument", "terms"], disable_numparse=True))
    L = by_rule(Rule(degree="out", laplacian=True), everything())
    low, high = eigsh_spread(L, STARTS)
    print(f"""
== what no matrix shows ==

Kipf and Spektral take lambda_max from scipy's eigsh, which reads L as symmetric. Of the directed graph's L the largest
eigenvalue is {top_eigenvalue(L):.3f}; eigsh returns {low:.3f} to {high:.3f}, by its random start ({STARTS} starts).
DGL's ChebConv ends in a ReLU unless told otherwise; its GraphConv refuses a node that nothing reaches (read, not run).
Spektral's GraphSAGE scales each output to length 1 (read, not run).""")


def _three(value: float) -> str:
    """A matrix with three decimals, and a dot for zero."""
    return "." if abs(value) < 5e-10 else f"{value:.3f}"
