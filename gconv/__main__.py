"""The command line: show versions, list and explain operators, print plans, check the installation.

python -m gconv                     versions, kernels, devices, and the throughputs that plans use
python -m gconv operators grid      the operators on grids, one per line (or: graph; default: all)
python -m gconv explain cheb        equation, meaning, traps, parts and source of an operator
python -m gconv plan "conv2d(3, 8, 3, padding=1)" 16 3 32 32     how a layer runs on an input of this shape
python -m gconv plan "gcn(16, 7)" 10000 16 --edges 50000         the same on a random graph
python -m gconv doctor              check the installation and say how to fix it; exit status 1 if the compiled
                                    kernels are missing or disabled
python -m gconv propagate E X --out DIR   S^k X for a graph and features larger than memory, on disk (--help)
python -m gconv calibrate           measure this machine for plans (`python -m gconv.calibrate`)

Help is printed without importing torch.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import math
import platform
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # --help needs neither torch nor the package
    from gconv.spec import OperatorSpec

DEFAULT_EDGES = 10_000  # of the random graph of `plan`
MOST_EDGES = 10_000_000  # of a graph that `plan` draws: more of them take long, and much memory
EXTRAS = {"graph": ("torch-geometric", "networkx", "scipy"), "experiments": ("matplotlib", "pandas", "tyro")}
OWN_OPTIONS = {
    "calibrate": "calibrate/__main__.py",
    "propagate": "external/command.py",
}  # commands with a parser of their own


def info() -> str:
    """Versions, kernels, devices and source of the throughputs, one per line."""
    import torch

    import gconv

    devices = ["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count()))]
    lines = {
        "gconv": gconv.__version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "devices": ", ".join(devices),
        "kernels": f"{gconv.backend()} (CPU)",
        "rates": _rates(),
        "operators": f"{len(gconv.list_operators())}; `python -m gconv operators` lists them",
    }
    return "\n".join(f"{name:10} {value}" for name, value in lines.items())


def _rates() -> str:
    where = _calibration()
    return f"measured here: {where}" if where else "built in; `python -m gconv calibrate` measures this machine"


def _calibration() -> str:
    """The file of the rates that plans use; empty for the built-in ones, also if the file cannot be used."""
    from gconv import rates

    source = rates.rates().source
    return "" if source == "defaults" else source


def operators(domain: str) -> str:
    """The operators on a kind of domain, one per line: the name and the first line of the docstring."""
    import gconv
    from gconv.spec import operator

    names = [n for n in gconv.list_operators() if domain in ("all", operator(n).samples()[0].spec.structure.domain)]
    wide = max(map(len, names))
    return "\n".join(f"{name:{wide}}  {_text(name).splitlines()[0]}" for name in names)


def explain(name: str) -> str:
    """An operator's signature and docstring, the structure and mixing of its first sample, and its source.

    Raises:
        ValueError: if there is no such operator; the message suggests the closest name.
    """
    from gconv.spec import operator

    entry = operator(name)
    spec = entry.samples()[0].spec
    plain = inspect.signature(entry.factory)
    signature = str(plain.replace(parameters=[_without_quotes(p) for p in plain.parameters.values()])).split(" -> ")[0]
    parts = f"{type(spec.structure).__name__} on a {spec.structure.domain}, {type(spec.mixing).__name__}"
    return f"{name}{signature}\n\n{_text(name)}\n\n{spec}: {parts}.\nSource: {entry.citation}."


class _Annotation(str):
    """An annotation as in the source: its repr has no quotes."""

    __repr__ = str.__str__


def _without_quotes(parameter: inspect.Parameter) -> inspect.Parameter:
    hint = parameter.annotation
    return parameter.replace(annotation=_Annotation(hint)) if isinstance(hint, str) else parameter


def _text(name: str) -> str:
    from gconv.spec import operator

    return inspect.getdoc(operator(name).factory) or name


def plan(text: str, shape: Sequence[int], edges: int | None = None) -> str:
    """The plan of a layer, given as `name(arguments)`, for an input of this shape, with gradients.

    Raises:
        ValueError: if the text is not an operator with its arguments, or the input does not fit the layer or the
            memory of this machine.
    """
    from gconv.errors import first_line, ran_out_of_memory
    from gconv.spec import OperatorSpec

    if min(shape) < 1:
        raise ValueError(f"the sizes of the input must be at least 1, but they are {list(shape)}")
    if edges is not None and edges < 0:
        raise ValueError(f"--edges must be at least 0, but it is {edges}")
    if 4 * math.prod(shape) > sys.maxsize or 16 * (edges or 0) > sys.maxsize:
        graph = "" if edges is None else f" with {edges} edges"
        raise ValueError(f"an input of shape {list(shape)}{graph} has more bytes than can be addressed")
    spec = OperatorSpec.parse(text)
    if edges is not None and spec.structure.domain == "grid":
        raise ValueError(f"--edges is for operators on graphs, and {spec.name} is one on grids; leave it out")
    try:
        return _plan(spec, shape, DEFAULT_EDGES if edges is None else edges)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error) and not isinstance(error, MemoryError):
            raise
        said = first_line(error).rpartition("DefaultCPUAllocator: ")[2] if str(error) else "out of memory"
        raise ValueError(
            f"{text} and an input of shape {list(shape)} are too large for the memory of this machine; choose smaller "
            f"sizes ({said})"
        ) from None


def _plan(spec: OperatorSpec, shape: Sequence[int], edges: int) -> str:
    import torch

    import gconv

    layer = gconv.GConv(spec)
    x = torch.zeros(tuple(shape))
    if layer.spec.structure.domain == "grid":
        return str(layer.plan(x))
    if len(shape) < 2:
        raise ValueError(
            f"{layer.spec.name} takes features of shape (*batch, nodes, channels), but {list(shape)} was given"
        )
    if edges > MOST_EDGES:  # a plan reads sizes only, and a tensor without values has them at once
        try:
            edge_index = torch.empty(2, edges, dtype=torch.int64, device="meta")
            return str(layer.to("meta").plan(x.to("meta"), gconv.Graph(edge_index, size=shape[-2])))
        except (RuntimeError, ValueError):  # S of this operator reads the edges, for example for an eigenvalue
            layer = gconv.GConv(spec)
    edge_index = torch.randint(shape[-2], (2, edges), generator=torch.Generator().manual_seed(0))
    try:
        return str(layer.plan(x, gconv.Graph(edge_index, size=shape[-2])))
    except ValueError as error:
        if not any(word in str(error) for word in ("edge_type", "edge_attr", "undirected")):
            raise
        raise ValueError(
            f"{layer.spec.name} cannot run on the random graph of this command, which is directed and has neither "
            f"labels nor attributes; plan it in Python, by layer.plan(x, graph) ({str(error).rstrip('.')})"
        ) from None


def checks() -> Iterator[tuple[bool, str, str]]:
    """The checks of the installation: (whether it passed, what was checked, what to do otherwise)."""
    from gconv.kernels import native

    built = native.load() is not None
    yield built, "compiled kernels", "install a C compiler with OpenMP and run `pip install -e .` again"
    if built:
        yield native.LIBRARY is not None, "kernels in use", "unset GCONV_KERNELS, or set it to a value other than off"
    yield (
        bool(_calibration()),
        "rates of this machine",
        "run `python -m gconv calibrate` (a minute); plans use built-in ones now",
    )
    for extra, packages in EXTRAS.items():
        for package in packages:
            yield _installed(package), package, f"pip install -c constraints.txt -e '.[{extra}]'"


def _installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def doctor() -> tuple[str, bool]:
    """The checks as text, and whether the compiled kernels are in use."""
    found = list(checks())
    lines = [f"ok     {what}" if well else f"to do  {what}: {cure}" for well, what, cure in found]
    return "\n".join(lines), all(well for well, what, _ in found if "kernels" in what)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m gconv", description=__doc__, formatter_class=form)
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="command")
    listed = commands.add_parser("operators", help="list the operators")
    listed.add_argument("domain", nargs="?", choices=("grid", "graph", "all"), default="all")
    commands.add_parser("explain", help="describe an operator").add_argument("name")
    planned = commands.add_parser("plan", help="print the plan of a layer")
    planned.add_argument("spec", help="such as 'cheb(16, 32, k=3)'")
    planned.add_argument(
        "shape", nargs="+", type=int, help="shape of the input: batch, channels, grid; or nodes, channels"
    )
    planned.add_argument("--edges", type=int, help=f"number of edges of the random graph ({DEFAULT_EDGES})")
    commands.add_parser("doctor", help="check the installation")
    commands.add_parser("calibrate", help="measure this machine for plans", add_help=False)
    commands.add_parser("propagate", help="S^k X for a graph larger than memory", add_help=False)
    given, rest = parser.parse_known_args(argv)
    if given.version:
        import gconv

        print(gconv.__version__)
        return
    if rest and given.command not in OWN_OPTIONS:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    match given.command:
        case None:
            print(info())
        case "operators":
            print(operators(given.domain))
        case "explain" | "plan":
            try:
                print(explain(given.name) if given.command == "explain" else plan(given.spec, given.shape, given.edges))
            except (ValueError, TypeError, RuntimeError) as error:
                sys.exit(f"error: {error}")
        case "doctor":
            text, well = doctor()
            print(text)
            sys.exit(not well)
        case "calibrate" | "propagate" if not {"-h", "--help"}.isdisjoint(rest):  # which needs no torch
            runpy.run_path(str(Path(__file__).parent / OWN_OPTIONS[given.command]))["main"](rest)
        case "calibrate":
            from gconv.calibrate.__main__ import main as calibrate

            calibrate(rest)
        case "propagate":
            from gconv.external.command import main as propagate

            propagate(rest)


if __name__ == "__main__":
    main()
