"""Predict the subject of each paper in a citation graph, one of Cora's seven, and draw a figure.

    python -m experiments.citation.predict GRAPH.safetensors --out papers.png
    python -m experiments.citation.predict --example cora.safetensors       write Cora as such a file
    python -m experiments.citation.predict --train                          train the network (seconds), save to runs/

A graph is a safetensors file with `edge_index` (2, e), int64, row 0 the source of each edge, and `x` (n, 1433), the
occurrence of each of Cora's words in a paper (non-negative numbers). The network is the GCN of `experiments.citation`,
trained on 140 of Cora's papers. It is inductive: its weights do not depend on the graph. The figure shows the papers
along the two principal directions of their scores, coloured by subject.
"""

import csv
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor

from datasets.planetoid import load_planetoid
from datasets.root import read
from experiments.citation.networks import Config, Network, Task, load, resolve
from experiments.citation.responses import fitted
from experiments.harness import predicting
from experiments.harness.common import RUNS
from experiments.harness.options import command_name
from experiments.harness.outputs import check_not_folder, check_output, refuse_together, whole_file
from gconv import Graph

NAME = "papers"
WORDS = 1433
MOST = 2**28  # bytes of a file
SUBJECTS = (
    "theory", "reinforcement learning", "genetic algorithms", "neural networks", "probabilistic methods",
    "case based", "rule learning",
)  # fmt: skip
SMALL = resolve(Config(dataset="Cora", model="gcn"))


@dataclass(frozen=True)
class Options:
    """Input and output."""

    graph: Annotated[Path | None, tyro.conf.Positional] = None
    """Safetensors file with edge_index and x."""
    out: Path | None = None
    """Figure to write, .png or .jpg."""
    table: Path | None = None
    """CSV file to write, one line per paper: number, subject, probability."""
    checkpoint: Path | None = None
    """Weights of the network (default: experiments/checkpoints, else runs)."""
    train: bool = False
    """Train the network and write the checkpoint instead of predicting."""
    example: Path | None = None
    """Write Cora as a graph file instead of predicting."""
    data_root: Path | None = None
    """For --train and --example: folder of the data sets (default: $GCONV_DATA, else the user's cache folder)."""

    def __post_init__(self) -> None:
        """Check the options."""
        predicting.checked_picture(self.out)
        inputs = {"a graph": self.graph, "--out": self.out, "--table": self.table}
        if self.train:
            refuse_together("--train", {**inputs, "--example": self.example})
        if self.example is not None:
            refuse_together("--example", {**inputs, "--checkpoint": self.checkpoint})
        if self.out is not None and self.out == self.table:
            raise ValueError(f"--out and --table both name {self.out}; give two files")


class Papers(NamedTuple):
    """A graph and the words of its papers (n, 1433), rows divided by their sums."""

    graph: Graph
    x: Tensor


def read_graph(path: Path) -> Papers:
    """Read a graph file. Raises: DataCorrupt, ValueError."""
    from safetensors import SafetensorError
    from safetensors.torch import load as tensors_of

    content = read(path, MOST)
    try:
        found = tensors_of(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged ({str(error).splitlines()[0]})") from None
    if missing := [name for name in ("edge_index", "x") if name not in found]:
        raise ValueError(f"{path} has no {' and no '.join(missing)}; a graph has edge_index (2, e) and x (n, {WORDS})")
    edges, x = found["edge_index"], found["x"]
    if x.ndim != 2 or x.shape[1] != WORDS or not len(x):
        raise ValueError(
            f"{path}: x has shape {tuple(x.shape)}; the network reads (n, {WORDS}), a column for each word"
        )
    if x.is_complex():
        raise ValueError(f"{path}: x has complex numbers; it counts words, so its numbers are real")
    if edges.ndim != 2 or len(edges) != 2 or edges.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{path}: edge_index has shape {tuple(edges.shape)} and {edges.dtype}; expected (2, e), int64")
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < len(x):
        odd = edges[(edges < 0) | (edges >= len(x))][0]
        raise ValueError(f"{path}: an edge names paper {int(odd)}, and there are papers 0 to {len(x) - 1}")
    x = x.double()
    if not bool(torch.isfinite(x).all()) or bool((x < 0).any()):
        raise ValueError(f"{path}: x has numbers that are negative or not finite")
    return Papers(Graph(edges.long(), len(x)), (x / x.sum(1, keepdim=True).clamp(min=1e-12)).float())


def restored(path: Path) -> Network:
    """Load the network from a file. Raises: InputError, OSError."""
    return predicting.restored(path, Network(SMALL, WORDS, len(SUBJECTS)))


@torch.no_grad()
def predict(model: Network, papers: Papers) -> Tensor:
    """Class scores, (n, 7)."""
    scores: Tensor = model(papers.x, papers.graph)
    return scores


def draw(scores: Tensor, papers: Papers, path: Path) -> None:
    """Draw the papers along the two principal directions of their scores."""
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    centred = (scores - scores.mean(0)).double()
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    places, subject = (centred @ directions[:2].mT).numpy(), scores.argmax(1).numpy()
    canvas = Figure(figsize=(7, 5), layout="constrained")
    axes: Any = canvas.subplots()
    source, target = (papers.graph.edge_index[:, :20_000]).numpy()
    lines = np.stack([places[source], places[target]], 1)[..., [0, -1]]
    axes.add_collection(LineCollection(list(lines), colors="0.85", linewidths=0.3, zorder=0))
    for c, name in enumerate(SUBJECTS):
        here = subject == c
        axes.scatter(places[here, 0], places[here, -1], s=8, label=f"{name}: {here.sum()}")
    axes.legend(fontsize="small")
    axes.set(xticks=[], yticks=[])
    canvas.savefig(path, dpi=120)


def learn(options: Options) -> None:
    """Train the network with the protocol of `experiments.citation`, and write the checkpoint."""
    path = options.checkpoint or RUNS / f"{NAME}.safetensors"
    check_output("--checkpoint", path, parents=True)
    task: Task = load("Cora", options.data_root)[0]
    model = fitted(task, SMALL)
    model.load_state_dict(model.half().state_dict())
    model.float().eval()
    with torch.no_grad():
        right = (model(task.x, task.graph).argmax(1) == task.y)[task.test].float().mean().item()
    predicting.written(model, path)
    print(f"wrote {path}: {100 * right:.1f} % of Cora's test papers are right")


def example(options: Options) -> None:
    """Write Cora as a graph file."""
    from safetensors.torch import save

    assert options.example is not None
    check_output("--example", options.example)
    data = load_planetoid("Cora", options.data_root).data
    with whole_file(options.example) as part:
        part.write_bytes(save({"edge_index": data.edge_index.contiguous(), "x": data.x.to(torch.uint8)}))
    print(f"wrote {options.example}: {data.num_nodes} papers, {data.num_edges} edges")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Raises: SystemExit with an error message."""
    options = tyro.cli(Options, prog=command_name(), description=__doc__, args=argv)
    with predicting.one_sentence(), warnings.catch_warnings(action="ignore", category=UserWarning):
        if options.train or options.example is not None:
            (learn if options.train else example)(options)
            return
        if options.graph is None:
            raise ValueError("give a graph file; --example FILE writes one")
        inputs = (options.graph, options.checkpoint)
        check_output("--out", options.out, others=inputs)
        check_not_folder("--checkpoint", options.checkpoint)
        check_output("--table", options.table, others=(*inputs, options.out))
        papers = read_graph(options.graph)
        scores = predict(restored(options.checkpoint or predicting.place(NAME)), papers)
        if options.out is not None:
            with whole_file(options.out) as part:
                draw(scores, papers, part)
        found, subject = scores.softmax(1).max(1)
        if options.table is not None:
            with whole_file(options.table) as part, open(part, "w", encoding="utf-8", newline="") as file:
                names = [SUBJECTS[c] for c in subject.tolist()]
                rows = zip(range(len(names)), names, (f"{p:.4f}" for p in found.tolist()), strict=True)
                csv.writer(file).writerows([("paper", "subject", "probability"), *rows])
    for name, count in zip(SUBJECTS, subject.bincount(minlength=len(SUBJECTS)).tolist(), strict=True):
        print(f"{name:24s} {count:6d} paper{'s' * (count != 1)}")
    if empty := int((papers.x.sum(1) == 0).sum()):
        print(f"papers without words, classified only by their citations: {empty}", file=sys.stderr)


if __name__ == "__main__":
    main()
