"""SIGN or SGC on ogbn-arxiv, ogbn-products or ogbn-papers100M, from their raw files: `datasets.ogb` has the layout.

The powers S X, ..., S^k X of gcn's S are written to disk once, within --memory; then a network is trained on
minibatches of their rows: `sign` reads X and all powers (Frasca et al., 2020), `sgc` only the last power. Graphs are
made undirected. The epoch with the highest validation accuracy is kept and tested once. After an interruption, the same
command reuses the powers that exist and restarts the training. The results have not been compared with published ones,
since none of the three data sets was available.

    python -m experiments.large_graphs.sign --dataset arxiv --memory 4GB --out run/arxiv
    python -m experiments.large_graphs.sign --dataset papers100M --memory 24GB --out run/papers
"""

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datasets.ogb import OGB, load_ogb
from datasets.root import DataError
from experiments.harness.options import check, command_name
from gconv.external import DiskError, DiskGraph, Rows, features_from_text, propagate
from gconv.external.features import Features, is_text


@dataclass(frozen=True)
class Config:
    """Options."""

    out: Path
    """Folder for the graph and the powers."""
    dataset: Literal["arxiv", "products", "papers100M"] = "arxiv"
    """Data set."""
    model: Literal["sign", "sgc"] = "sign"
    """Network."""
    k: int = 3
    """Number of powers."""
    memory: str = "2GB"
    """Memory limit of the process while the graph and the powers are computed."""
    hidden: int = 512
    """Number of hidden channels."""
    dropout: float = 0.5
    """Dropout probability."""
    lr: float = 0.001
    """Learning rate."""
    batch: int = 4096
    """Batch size."""
    epochs: int = 50
    """Number of epochs."""
    workers: int = 0
    """Number of processes that load minibatches."""
    seed: int = 0
    """Random seed."""
    data_root: Path | None = None
    """Folder of the data sets (default: $GCONV_DATA, else the user's cache folder)."""


def powers(data: OGB, config: Config) -> list[Path]:
    """X and its powers, as .npy files."""
    config.out.mkdir(parents=True, exist_ok=True)
    features = data.features
    if is_text(features):
        known = config.out / "features.npy"
        features = str(known if known.exists() else features_from_text(features, known))
    graph = DiskGraph.build(
        config.out / "graph", data.edges, len(data.y), undirected=True, duplicates="drop", memory=config.memory,
        progress=told,
    )  # fmt: skip
    propagate(graph, features, config.k, config.out / f"powers-{config.k}", memory=config.memory, progress=told)
    made = [config.out / f"powers-{config.k}" / f"power-{power}.npy" for power in range(1, config.k + 1)]
    return made[-1:] if config.model == "sgc" else [unpacked(features, config.out / "features.npy"), *made]


def unpacked(features: str, out: Path) -> Path:
    """X as a .npy file, extracted from an archive if necessary."""
    if not out.exists():
        x, trial = Features(features), out.with_suffix(".part")
        rows = np.lib.format.open_memmap(trial, "w+", x.dtype, x.shape)
        for first in range(0, len(rows), 1 << 16):
            rows[first : first + (1 << 16)] = x.read(first, min(len(rows), first + (1 << 16)))
        rows.flush()
        trial.replace(out)
    return out


def told(what: str, done: int, total: int) -> None:
    """Print progress, with a line at the end of a step."""
    if done == total:
        print(f"{what}: done", file=sys.stderr)


def network(channels: int, classes: int, config: Config) -> nn.Module:
    """A linear map for sgc, one hidden layer for sign."""
    if config.model == "sgc":
        return nn.Linear(channels, classes)
    return nn.Sequential(
        nn.Linear(channels, config.hidden),
        nn.BatchNorm1d(config.hidden),
        nn.ReLU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.hidden, classes),
    )


def loader(signals: Sequence[Path], nodes: Tensor, y: Tensor, config: Config, shuffle: bool) -> DataLoader:
    """Minibatches of the labelled nodes."""
    rows = Rows(signals, nodes[y[nodes] >= 0], y)
    generator = torch.Generator().manual_seed(config.seed)
    return DataLoader(rows, config.batch, shuffle=shuffle, num_workers=config.workers, generator=generator)


@torch.no_grad()
def accuracy(net: nn.Module, batches: DataLoader) -> float:
    """Fraction of correctly classified nodes."""
    net.eval()
    right = [(net(x).argmax(1) == y).sum().item() for x, y in batches]
    return sum(right) / max(1, len(batches.dataset))  # type: ignore[arg-type]


def train(config: Config) -> dict[str, float]:
    """Train. Returns: validation and test accuracy, selected epoch. Raises: DataError, DiskError, ValueError."""
    data = load_ogb(config.dataset, config.data_root)
    signals = powers(data, config)
    torch.manual_seed(config.seed)
    batches = loader(signals, data.train, data.y, config, True)
    valid, test = (loader(signals, nodes, data.y, config, False) for nodes in (data.valid, data.test))
    net = network(batches.dataset.channels, int(data.y.max()) + 1, config)  # type: ignore[attr-defined]
    optimiser = torch.optim.Adam(net.parameters(), config.lr)
    best, kept, epoch_kept = -1.0, copy.deepcopy(net.state_dict()), 0
    for epoch in range(1, config.epochs + 1):
        net.train()
        for x, y in batches:
            if len(x) > 1 or config.model == "sgc":  # a single row has no batch statistics
                optimiser.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimiser.step()
        found = accuracy(net, valid)
        if found > best:
            best, kept, epoch_kept = found, copy.deepcopy(net.state_dict()), epoch
        print(f"epoch {epoch}: validation accuracy {found:.4f}", file=sys.stderr)
    net.load_state_dict(kept)
    return {"val_accuracy": best, "test_accuracy": accuracy(net, test), "epoch": epoch_kept}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Raises: SystemExit."""
    import tyro

    config = tyro.cli(Config, prog=command_name(), description=__doc__, args=argv)
    try:
        check(config, 1)
        found = train(config)
    except (DataError, DiskError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(", ".join(f"{name} {value:.4g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
