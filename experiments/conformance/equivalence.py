"""All lowerings of an operator agree in values and gradients: to 1e-10 in float64 and to 1e-4 in float32.

Protocol: every registered operator on all its samples (with random weights, biases and batches of signals), with every
lowering that supports it, in both precisions, compared with the `dense` lowering in float64, which forms the matrix.
The error is the largest difference in a tensor relative to its largest entry, or absolute if that is below 1e-12,
which is rounding. The tests compare `dense` with torch, PyG and scipy (tests/oracles).

    python -m experiments.conformance.equivalence       exit status 1 if a bound is exceeded

A row belongs to one state of gconv's source, whose hash it contains; rows of other states are replaced.
"""

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from experiments.harness import common
from experiments.harness.machine import ROOT
from gconv import list_operators
from gconv.kernels import backend
from gconv.spec import operator
from gconv.testing import Case

Dtype = Literal["float64", "float32"]
DTYPES: dict[str, torch.dtype] = {"float64": torch.float64, "float32": torch.float32}
BOUND = {"float64": 1e-10, "float32": 1e-4}  # the latter for gradients through an eigenbasis or degrees; others 1e-6
KINDS = ("value", "input_gradient", "weight_gradient", "structure_gradient")


@dataclass(frozen=True)
class Options:
    """Options."""

    only: str = ""
    """Run only this operator; empty for all."""
    seed: int = 0
    """Seed of weights and signals."""


@dataclass(frozen=True)
class Config:
    """One operator with one lowering in one precision."""

    operator: str
    lowering: str
    dtype: Dtype
    seed: int = 0


@cache
def living(name: str, dtype: Dtype, seed: int) -> list[tuple[Case, dict[str, Tensor]]]:
    """The samples of an operator in this precision, each with the result of `dense` in float64 on the same data."""
    made = []
    for sample in operator(name).samples():
        case = Case.of(sample, DTYPES[dtype], seed=seed)
        exact = replace(case, layer=copy.deepcopy(case.layer).double(), x=case.x.double())
        made.append((case, exact.gradients("dense")))
    return made


def lowerings(name: str) -> list[str]:
    """All lowerings that support at least one sample of the operator."""
    return list(dict.fromkeys(which for case, _ in living(name, "float64", 0) for which in case.lowerings))


def kind(what: str) -> str:
    """The entry of `KINDS` to which a tensor of `Case.gradients` belongs.

    >>> [kind(what) for what in ("value", "gradient in x", "gradient in bias", "gradient in edge_weight")]
    ['value', 'input_gradient', 'weight_gradient', 'structure_gradient']
    """
    if what == "value":
        return "value"
    kinds = {"x": "input_gradient", "weight": "weight_gradient", "bias": "weight_gradient"}
    return kinds.get(what.removeprefix("gradient in "), "structure_gradient")


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest expected value unless that is below 1e-12.

    Raises: ValueError for different shapes or non-finite values.

    >>> error(torch.tensor([1.0, 4.5]), torch.tensor([1.0, 4.0]))
    0.125
    """
    got, want = got.detach().double(), want.detach().double()
    if got.shape != want.shape or not bool(got.isfinite().all()):
        raise ValueError(f"shape {tuple(got.shape)}, expected {tuple(want.shape)}, or a number that is not finite")
    if not want.numel():
        return 0.0
    scale = float(want.abs().max())
    return float((got - want).abs().max()) / (scale if scale >= 1e-12 else 1.0)


def run(config: Config) -> common.Outcome:
    """The largest error over all samples, by kind; 0 if an operator has no tensor of a kind."""
    errors, samples = dict.fromkeys(KINDS, 0.0), 0
    for case, want in living(config.operator, config.dtype, config.seed):
        if config.lowering not in case.lowerings:
            continue
        samples += 1
        got = case.gradients(config.lowering)
        for what in want:
            errors[kind(what)] = max(errors[kind(what)], error(got[what], want[what]))
    metrics: dict[str, Any] = {"max_error": max(errors.values()), "samples": samples}
    metrics |= {f"{name}_error": value for name, value in errors.items()}
    return common.Outcome(metrics | {"reference": "dense, float64", "kernels": backend()}, [config.lowering])


@cache
def source() -> common.Data:
    """The state of gconv's source."""
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted((ROOT / "gconv").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return common.Data("gconv's source", digest.hexdigest()[:16])


def configs(options: Options) -> Iterator[Config]:
    """One configuration per row. Raises: ValueError if there is no such operator."""
    for name in [operator(options.only).name] if options.only else list_operators():
        for lowering in lowerings(name):
            for dtype in ("float64", "float32"):
                yield Config(name, lowering, dtype, options.seed)


def main(argv: list[str] | None = None) -> None:
    """Command line. Raises: SystemExit if a bound is exceeded."""
    options, how = common.cli(Options, __doc__, argv)
    results = how.open("equivalence")
    try:
        todo = [c for s in range(how.seeds) for c in configs(replace(options, seed=options.seed + s))]
        if any(row.get("data") != source()._asdict() for row in results.rows()):
            results.probe()
            results.path.unlink()
    except (ValueError, OSError, common.ResultsError) as problem:
        raise SystemExit(f"error: {problem}") from problem
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # all tensors are small, so a second thread would only add overhead
    try:
        rows = common.sweep(todo, run, results, experiment="equivalence", data=source(), jobs=how.jobs)
    finally:
        torch.set_num_threads(before)
    show(rows)
    broken = [row for row in rows if not row["metrics"]["max_error"] <= BOUND[row["config"]["dtype"]]]
    if broken:
        lines = [f"{' '.join(map(str, row['config'].values()))}: {row['metrics']['max_error']:.1e}" for row in broken]
        raise SystemExit("error: more than rounding:\n" + "\n".join(lines))


def show(rows: list[common.Row]) -> None:
    """Print the largest errors."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("operator", "lowering", "samples", *BOUND)
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        c, m = row["config"], row["metrics"]
        cell = cells.setdefault((c["operator"], c["lowering"]), {"samples": str(m["samples"])})
        style = "" if m["max_error"] <= BOUND[c["dtype"]] else "bold red"
        cell[c["dtype"]] = Text(f"{m['max_error']:.1e}", style)
    for names, cell in cells.items():
        table.add_row(*names, cell["samples"], *(cell.get(dtype, "") for dtype in BOUND))
    Console().print(table)
    for dtype, bound in BOUND.items():
        errors = [row["metrics"] for row in rows if row["config"]["dtype"] == dtype]
        if errors:
            each = [f"{name.replace('_', ' ')} {max(m[f'{name}_error'] for m in errors):.1e}" for name in KINDS]
            print(f"{dtype}: largest error in {len(errors)} rows: {', '.join(each)}; allowed {bound:.0e}")


if __name__ == "__main__":
    main()
