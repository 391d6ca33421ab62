"""python -m gconv propagate: S^k X for a graph and features on disk, within a memory limit.

EDGES is a list of edges u -> v (.npy, .npz, .i32, .i64, .txt, .csv, .tsv and .gz of text), or a graph folder built by
an earlier call. FEATURES has one row per node: .npy or .npz (data.npz:node_feat names the array), or text. The output
folder DIR contains

    graph/                 the graph, sorted by rows; can be given as EDGES of another call
    power-1.npy ...        S X, S^2 X, ..., S^k X, to be read with numpy.load(..., mmap_mode="r") or gconv.external.Rows

If the command is repeated after a kill or a full disk, it resumes where it stopped. Examples:

    python -m gconv propagate edges.csv x.npy --k 3 --memory 8GB --out run              SGC and SIGN, gcn's S
    python -m gconv propagate edges.csv x.npy --k 2 --norm mean --out run               sage's mean
    python -m gconv propagate edges.csv x.npy --k 10 --alpha 0.1 --keep last --out run  appnp
    python -m gconv propagate data.npz:edge_index data.npz:node_feat --undirected --duplicates drop --memory 24GB \\
        --out papers100M

Memory holds one slab of channels at all nodes, 4 bytes per number; with more memory, S is read fewer times.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # --help needs neither torch nor the package
    from gconv.external.product import Norm

BUILD_OPTIONS = ("nodes", "undirected", "duplicates")  # they change a graph only while it is built
SCALINGS: dict[str, tuple[Norm, bool]] = {
    "gcn": ("sym", True),
    "sym": ("sym", False),
    "mean": ("row", False),
    "sum": (None, False),
}


class _Lines:
    """Progress on stderr: a single updated line on a terminal, otherwise a line every few seconds."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.every, self.last, self.what = (0.2 if self.terminal else 10.0), 0.0, ""

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last < self.every and what == self.what:
            return
        self.last = now
        share = f"{100 * done / total:3.0f} %" if total else f"{done:,}"
        end = "" if self.terminal else "\n"
        start = "\r\x1b[K" if self.terminal else ""
        self.what = what
        print(f"{start}{what}: {share}", end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.terminal and self.what:
            print(file=sys.stderr)


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected a path, but it is empty")
    return text


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Raises: SystemExit."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m gconv propagate", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("edges", metavar="EDGES", type=_path, help="edge list file, or folder of a graph built before")
    add("features", metavar="FEATURES", type=_path, help="feature file, one row per node")
    add("--out", metavar="DIR", type=_path, required=True, help="folder for the graph and the results")
    add("--k", type=int, default=3, help="number of powers (3)")
    add("--memory", default="2GB", help="limit for the whole process, such as 8GB (2GB)")
    add(
        "--norm", choices=list(SCALINGS), default="gcn", help="gcn: symmetric with self-loops added; sym: without (gcn)"
    )
    add("--alpha", type=float, default=0.0, help="weight of X in each step, as in appnp (0)")
    add("--keep", choices=("all", "last"), default="all", help="all powers, or only the last (all)")
    add("--dtype", choices=("float32", "float64"), help="of the results (that of the features)")
    add("--nodes", type=int, help="number of nodes (the rows of FEATURES)")
    add("--undirected", action="store_true", help="add the reverse of each edge")
    add("--duplicates", choices=("keep", "drop", "refuse"), default="keep", help="repeated edges (keep)")
    given = parser.parse_args(argv)
    from gconv.external.files import DiskError

    lines = _Lines()
    try:
        _run(given, lines, {name: parser.get_default(name) for name in BUILD_OPTIONS})
    except (DiskError, ValueError, TypeError) as error:
        lines.close()
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        lines.close()
        sys.exit("interrupted; repeat the command to resume")


def _converted(features: str, out: Path) -> Path:
    """The features of a text file as out/features.npy, converted unless a repeated call has done it.

    features.json identifies the text file. It is written first, so that an interrupted conversion is repeated.

    Raises: ValueError if features.npy was made from another file.
    """
    from gconv.external.edges import stamp
    from gconv.external.features import features_from_text
    from gconv.external.files import DiskError, missing_file, read_json, using, write_json

    known, note = out / "features.npy", out / "features.json"
    if not Path(features).is_file():
        raise DiskError(missing_file(features))
    source = {"source": stamp(Path(features))}
    if known.exists():
        if read_json(note) != source:
            raise ValueError(
                f"{known} was converted from another file than {features}, or the file has changed since; delete "
                f"{known} or use another folder"
            )
        return known
    with using(out):
        out.mkdir(parents=True, exist_ok=True)
    write_json(note, source)
    return features_from_text(features, known)


def _run(given: argparse.Namespace, lines: _Lines, built_by_default: dict[str, object]) -> None:
    import torch

    from gconv.external.features import Features, is_text
    from gconv.external.files import format_bytes, read_json
    from gconv.external.graph import DiskGraph
    from gconv.external.product import check_steps, propagate

    check_steps(given.k, given.alpha)  # before a graph is built, which can take hours
    out, features = Path(given.out), given.features
    if is_text(features):
        features = _converted(features, out)
    rows = Features(features).shape[0]
    if not rows:
        raise ValueError(f"{given.features} has no rows; features have one row per node")
    begun = (out / "graph" / "graph.json").exists() or (Path(given.edges) / "graph.json").exists()
    if given.nodes not in (None, rows) and not begun:  # before a graph is built for nothing
        raise ValueError(f"--nodes is {given.nodes}, but {given.features} has {rows} rows, one per node")
    start = time.perf_counter()
    if (Path(given.edges) / "graph.json").exists():
        graph = DiskGraph.open(given.edges)
        settings = read_json(Path(given.edges) / "graph.json") or {}
        had = {**(settings.get("settings") or {}), "nodes": graph.nodes}
        for name, default in built_by_default.items():
            value = getattr(given, name)
            if value not in (default, had.get(name, default)):
                raise ValueError(
                    f"{given.edges} is a graph that was built before, with {name} {had.get(name, default)}, and "
                    f"--{name} has an effect only while a graph is built; leave it out, or give the list of edges"
                )
    else:
        graph = DiskGraph.build(
            out / "graph",
            given.edges,
            rows if given.nodes is None else given.nodes,
            undirected=given.undirected,
            duplicates=given.duplicates,
            memory=given.memory,
            progress=lines,
        )
    built = time.perf_counter()
    norm, loops = SCALINGS[given.norm]
    powers = propagate(
        graph,
        features,
        given.k,
        out,
        norm=norm,
        loops=loops,
        alpha=given.alpha,
        keep=given.keep,
        dtype=None if given.dtype is None else getattr(torch, given.dtype),
        memory=given.memory,
        progress=lines,
    )
    done = time.perf_counter()
    lines.close()
    size = format_bytes(sum(power.nbytes for power in powers))
    print(f"{graph!r}, built in {built - start:.1f} s")
    print(f"{len(powers)} x {powers[0].shape} {powers[0].dtype}, {size}, in {out}, computed in {done - built:.1f} s")
