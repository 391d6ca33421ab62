"""Fine-tuning of a pretrained BERT (MiniLM, 22.7M parameters) on TREC and MR: how many parameters must be trained.

    head      a linear layer on the mean of the frozen token features
    conv      a 1-D convolution of width 3 over the frozen token features, the maximum over the sentence, a linear layer
    adapters  low-rank adapters on the encoder's linear layers (`gconv.convert`, `gconv.adapt`), and the linear layer
    all       all weights, and the linear layer

Protocol: the split, training loop and selection rule of `experiments.text.classify`: a tenth of the training documents,
chosen by the seed, for validation; Adam; the epoch with the lowest validation loss is kept; the test documents are
scored once. Only the first `length` word pieces of a document are used (32; the fraction of longer documents is in the
rows). Features are computed once per data set and cached in runs/features, in float16. Settings: `SETTINGS`, not tuned.

    python -m experiments.sweep bert                            run missing runs, one process per run
    python -m experiments.large.bert --model conv --dataset TREC
"""

import hashlib
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gconv
from datasets.text import TextSet
from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.render import Figure, Table, mean_std, one
from experiments.harness.store import cached, save_cached
from experiments.large import pretrained
from experiments.text.classify import fit, largest, texts
from gconv import GConv
from gconv.operators import conv1d, pointwise

MODELS = ("head", "conv", "adapters", "all")
DATASETS = ("TREC", "MR")
SETTINGS: dict[str, dict[str, Any]] = {
    "head": {"lr": 1e-2, "batch": 50, "epochs": 40, "patience": 4},
    "conv": {"lr": 1e-3, "batch": 50, "epochs": 15, "patience": 3},
    "adapters": {"lr": 1e-3, "batch": 32, "epochs": 3, "patience": 1},
    "all": {"lr": 5e-5, "batch": 32, "epochs": 3, "patience": 1},
}


@dataclass(frozen=True)
class Config:
    """Fine-tuning options; None selects the value in `SETTINGS`."""

    model: Literal["head", "conv", "adapters", "every", "all"] = "every"
    """Fine-tuning method; every: all four."""
    dataset: Literal["TREC", "MR", "random", "all"] = "all"
    """random: generated texts, for testing."""
    encoder: Literal["minilm", "tiny"] = "minilm"
    """tiny: a small BERT with random weights, for testing."""
    length: int = 32
    """Number of word pieces used of each document."""
    hidden: int = 128
    """conv: channels of the convolution."""
    rank: int = 4
    """adapters: rank."""
    lr: float | None = None
    """Learning rate."""
    batch: int | None = None
    """Batch size."""
    epochs: int | None = None
    """Maximum number of epochs."""
    patience: int | None = None
    """Number of epochs without a lower validation loss after which training stops."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("length", "hidden", "rank", "batch", "epochs", "patience"):
            least = 3 if name == "length" else 1
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if self.length > 512:
            raise ValueError(f"length must be at most 512, the places that the encoder knows, not {self.length}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, not {self.lr}")


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run, with all settings; the cheapest methods first."""
    runs: list[Config] = []
    for model in MODELS if config.model == "every" else (config.model,):
        chosen = {k: v for k, v in SETTINGS[model].items() if getattr(config, k) is None}
        for dataset in DATASETS if config.dataset == "all" else (config.dataset,):
            more: Any = {"model": model, "dataset": dataset, **chosen}
            runs += [replace(config, **more, seed=config.seed + s) for s in range(seeds)]
    return runs


# -- word pieces and frozen features -------------------------------------------------------------------------------


def encoder(config: Config) -> nn.Module:
    """The pretrained network, or a small one with fixed random weights."""
    if config.encoder == "minilm":
        found: nn.Module = pretrained.minilm()
        return found
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small: Any = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        return BertModel(BertConfig(vocab_size=200, **small), add_pooling_layer=False)


@lru_cache(maxsize=2)
def pieces(dataset: str, kind: str, length: int, root: Path | None = None) -> tuple[Tensor, Tensor, float]:
    """Word piece indices (n, longest), lengths (n,), and the fraction of truncated documents."""
    data = texts(dataset, root)
    rows: list[list[int]]
    if kind == "minilm":
        # the full length of truncated texts is in `overflowing`
        coded = pretrained.minilm_tokenizer(length).encode_batch([" ".join(document) for document in data.documents])
        rows, cut = [one.ids for one in coded], sum(bool(one.overflowing) for one in coded)
    else:
        all_rows = [[1, *(3 + zlib.crc32(word.encode()) % 190 for word in words), 2] for words in data.documents]
        rows, cut = [[*row[: length - 1], 2] for row in all_rows], sum(len(row) > length for row in all_rows)
    out = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for place, row in zip(out, rows, strict=True):
        place[: len(row)] = torch.tensor(row)
    return out, torch.tensor([len(row) for row in rows]), cut / len(rows)


@torch.no_grad()
def features(config: Config, root: Path | None = None) -> Tensor:
    """Token features of all documents (n, longest, channels), float16; cached in runs/features."""
    ids, lengths, _ = pieces(config.dataset, config.encoder, config.length, root)
    weights = pretrained.minilm_hash() if config.encoder == "minilm" else "tiny"
    name = f"{texts(config.dataset, root).content_hash}-{weights}-{config.length}"
    file = common.RUNS / "features" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.pt"
    if config.encoder == "minilm" and (found := cached(file)) is not None:
        return found
    model = encoder(config).eval()
    out = torch.zeros(*ids.shape, hidden_size(model), dtype=torch.float16)
    for rows in lengths.argsort().split(64):  # of similar length
        longest = int(lengths[rows].max())
        out[rows, :longest] = tokens(model, ids[rows, :longest], lengths[rows]).half()
    if config.encoder == "minilm":
        save_cached(file, out)
    return out


def hidden_size(model: nn.Module) -> int:
    """Number of channels of the features of an encoder."""
    size: int = model.config.hidden_size  # type: ignore[assignment, union-attr]
    return size


def tokens(model: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
    """(b, n), (b,) -> (b, n, channels)."""
    there = torch.arange(ids.shape[1]) < lengths[:, None]
    y: Tensor = model(input_ids=ids, attention_mask=there.long()).last_hidden_state
    return y


def mean_of(x: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the first places: (b, n, c), (b,) -> (b, c).

    >>> mean_of(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([2]))
    tensor([[2.]])
    """
    there = torch.arange(x.shape[1]) < lengths[:, None]
    return (x * there[..., None]).sum(1) / lengths[:, None]


# -- the networks: document numbers -> scores of the classes -------------------------------------------------------


class OnFeatures(nn.Module):
    """The part that is trained on frozen features."""

    def __init__(self, config: Config, data: TextSet, root: Path | None):
        super().__init__()
        _, self.lengths, _ = pieces(config.dataset, config.encoder, config.length, root)
        found = features(config, root)
        i, o = found.shape[-1], len(data.classes)
        self.conv = GConv(conv1d(i, config.hidden, 3, padding=1)) if config.model == "conv" else None
        self.x = found if self.conv is not None else mean_of(found.float(), self.lengths)
        self.drop, self.last = nn.Dropout(0.2), GConv(pointwise(config.hidden if self.conv else i, o, ndim=1))

    def forward(self, documents: Tensor) -> Tensor:
        """(b,) -> (b, classes)."""
        x, lengths = self.x[documents].float(), self.lengths[documents]
        if self.conv is not None:
            x = largest(F.relu(self.conv(x[:, : int(lengths.max())].mT)), lengths)
        y: Tensor = self.last(self.drop(x)[..., None])
        return y[..., 0]


class OnTokens(nn.Module):
    """The encoder, with all of its weights or with adapters, and a linear layer on the mean."""

    def __init__(self, config: Config, data: TextSet, root: Path | None):
        super().__init__()
        self.ids, self.lengths, _ = pieces(config.dataset, config.encoder, config.length, root)
        found = gconv.convert(encoder(config))
        self.encoder = gconv.adapt(found, rank=config.rank) if config.model == "adapters" else found
        self.drop, self.last = nn.Dropout(0.2), GConv(pointwise(hidden_size(found), len(data.classes), ndim=1))

    def forward(self, documents: Tensor) -> Tensor:
        """(b,) -> (b, classes)."""
        lengths = self.lengths[documents]
        x = tokens(self.encoder, self.ids[documents, : int(lengths.max())], lengths)
        y: Tensor = self.last(self.drop(mean_of(x, lengths))[..., None])
        return y[..., 0]


def network(config: Config, root: Path | None = None) -> OnFeatures | OnTokens:
    """The network of a configuration."""
    kind = OnFeatures if config.model in ("head", "conv") else OnTokens
    return kind(config, texts(config.dataset, root), root)


def run(config: Config, place: Place) -> common.Outcome:
    """Run one method on one data set with one seed."""
    data = texts(config.dataset, place.root)
    common.seed_everything(config.seed)
    model = network(config, place.root)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    metrics = fit(model, data, config)  # type: ignore[arg-type]
    metrics |= {"trained": trained, "cut": pieces(config.dataset, config.encoder, config.length, place.root)[2]}
    specs = dict.fromkeys(repr(layer.spec) for layer in model.modules() if isinstance(layer, GConv))
    return common.Outcome(metrics, list(specs))


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run: the texts, and the pretrained weights."""
    data = texts(config.dataset, root)
    if config.encoder == "tiny":
        return common.Data(data.label, data.content_hash)
    return common.Data(f"{data.label} and MiniLM", f"{data.content_hash[:8]}{pretrained.minilm_hash()[:8]}")


def report(rows: list[common.Row]) -> None:
    """Print one line per way and set."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["config"]["dataset"], row["config"]["model"]), []).append(row["metrics"])
    for (dataset, model), found in cells.items():
        accuracy = mean_std(100)([m["test_accuracy"] for m in found])
        print(f"{dataset:6s} {model:10s} {accuracy:18s} {found[0]['trained']:,} trained parameters")


EXPERIMENT = Experiment(
    name="bert",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"dataset": "random", "encoder": "tiny", "epochs": 2, "hidden": 8},
    report=report,
    measured=("seconds_per_epoch",),
    tolerance={"test_accuracy": 0.03, "val_accuracy": 0.03, "val_loss": 0.1, "train_loss": 0.1},
    defaults={"seeds": 3},
)

TABLE = Table(
    name="bert",
    experiment="bert",
    label="config.model",
    labels=MODELS,
    n=3,
    unfinished=("*",),
    cells=one("config.dataset", "metrics.test_accuracy"),
    format=mean_std(100),
    caption=(
        "Test accuracy in % of a pretrained BERT (MiniLM, 22.7M parameters, the first 32 word pieces of a document): "
        "a linear layer or a 1-D convolution on frozen features, adapters of rank 4, every weight. One loop, one rule "
        "(the epoch of lowest validation loss). On TREC a network without pretraining reaches 91.2 (Kim 2014, random "
        "vectors), on MR 76.1 (ten folds)."
    ),
    command="python -m experiments.sweep bert --official",
)


def draw(axes: Any, rows: Sequence[common.Row]) -> None:
    """Plot accuracy against the number of trained parameters, one mark per run."""
    for dataset, mark in (("TREC", "o"), ("MR", "s")):
        found = [row["metrics"] for row in rows if row["config"]["dataset"] == dataset]
        if found:
            axes.plot(
                [m["trained"] for m in found], [100 * m["test_accuracy"] for m in found], mark, label=dataset, alpha=0.7
            )
    axes.set_xscale("log")
    axes.set_xlabel("trained parameters")
    axes.legend()


FIGURE = Figure(name="bert", experiment="bert", draw=draw, title="Fine-tuning MiniLM: test accuracy in %")

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
