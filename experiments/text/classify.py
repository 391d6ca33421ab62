"""Text classification: 1-D convolutions along the words, and graph convolutions on documents and words.

    kim         Kim 2014 with random vectors: widths 3, 4 and 5, the maximum over the sentence, a linear layer
    separable   four depthwise separable convolutions of width 5 with skip connections, the maximum over the sentence
    textgcn     Yao, Mao and Luo 2019: two gcn layers on the graph of documents and words, no features (X = I)
    sgc         Wu et al. 2019: S^2 X W on the same graph

Edges between documents and words are weighted by tf-idf, edges between words by their pointwise mutual information in
windows of 20 words if it is positive. The graph contains the words of the test documents (not their labels), so
textgcn and sgc are transductive: a new document needs a new graph. kim and separable do not use the test documents
before the end; they map all words that occur less than twice in the training documents (with those for validation) to
the same word.

Protocol: MR and R8 with Text GCN's split, TREC with its own. A tenth of the training documents, chosen by the seed, is
used for validation; Adam on the cross-entropy of the others, in batches of 50 or, on the graph, full-batch; the epoch
with the lowest validation loss is kept, and training stops after `patience` epochs without improvement. The test
documents are scored once, with the kept weights. Three seeds. Settings are those of Kim and Text GCN, with Adam instead
of Adadelta and of SGC's LBFGS and without Kim's bound on the norm of the last layer's weights, not tuned.

    python -m experiments.sweep text                            run missing runs, one process per run
    python -m experiments.text.classify --model kim --dataset TREC
"""

import copy
import math
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.text import TextSet, load_text
from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.progress import report as progress
from experiments.harness.render import Figure, Published, Table, bars, mean_std, one
from gconv import GConv, Graph, OperatorSpec
from gconv.operators import conv1d, gcn, pointwise, separable, sgc

MODELS = ("kim", "separable", "textgcn", "sgc")
DATASETS = ("TREC", "MR", "R8")


@dataclass(frozen=True)
class Config:
    """Network and training options; None selects the value in `SETTINGS`."""

    model: Literal["kim", "separable", "textgcn", "sgc", "all"] = "all"
    """Network."""
    dataset: Literal["TREC", "MR", "R8", "random", "all"] = "all"
    """random: generated texts, for testing."""
    width: int = 300
    """kim, separable: length of the word vectors."""
    hidden: int | None = None
    """Number of hidden channels."""
    length: int = 128
    """kim, separable: maximum number of words of a document."""
    dropout: float | None = None
    """Dropout probability."""
    lr: float | None = None
    """Learning rate."""
    batch: int | None = None
    """Number of training documents per step; 0 for all."""
    epochs: int | None = None
    """Maximum number of epochs."""
    patience: int | None = None
    """Number of epochs without a lower validation loss after which training stops."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.width < 1 or self.length < 1:
            raise ValueError(f"width and length must be at least 1, not {self.width} and {self.length}")
        for name, least in (("hidden", 1), ("batch", 0), ("epochs", 1), ("patience", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a probability in [0, 1), not {self.dropout}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, not {self.lr}")


_WORDS: dict[str, Any] = {"dropout": 0.5, "lr": 1e-3, "batch": 50, "epochs": 25, "patience": 3}
_GRAPH: dict[str, Any] = {"hidden": 200, "dropout": 0.5, "lr": 0.02, "batch": 0, "epochs": 200, "patience": 10}
SETTINGS: dict[str, dict[str, Any]] = {
    "kim": {**_WORDS, "hidden": 100},
    "separable": {**_WORDS, "hidden": 128},
    "textgcn": _GRAPH,
    "sgc": {**_GRAPH, "hidden": 1, "dropout": 0.0, "lr": 0.2},
}


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run, with all settings."""
    runs: list[Config] = []
    for dataset in DATASETS if config.dataset == "all" else (config.dataset,):
        for model in MODELS if config.model == "all" else (config.model,):
            chosen = {k: v for k, v in SETTINGS[model].items() if getattr(config, k) is None}
            runs.append(replace(config, model=model, dataset=dataset, **chosen))  # type: ignore[arg-type]
    return [replace(one, seed=config.seed + s) for s in range(seeds) for one in runs]


# -- the texts -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def texts(dataset: str, root: Path | None = None) -> TextSet:
    """The documents, loaded once per process. Raises: DataUnavailable, DataCorrupt."""
    if dataset != "random":
        return load_text(dataset, root)
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    documents = tuple(tuple(f"w{w}" for w in 6 * c + generator.integers(0, 9, 12)) for c in labels)
    return TextSet(
        label="random texts", classes=("a", "b", "c"), content_hash="generated", source="generated",
        documents=documents, labels=torch.from_numpy(labels), test=torch.arange(90) >= 60,
    )  # fmt: skip


def numbered(data: TextSet, length: int) -> tuple[Tensor, Tensor, int]:
    """Documents as word indices (n, length), lengths (n,), and the size of the vocabulary.

    0 is padding, and 1 stands for all words that occur less than twice in the training documents.
    """
    train = (data.documents[i] for i in (~data.test).nonzero()[:, 0].tolist())
    counts = Counter(word for document in train for word in document)
    number = {word: i for i, word in enumerate(sorted(w for w, c in counts.items() if c > 1), 2)}
    cut = [document[:length] for document in data.documents]
    out = torch.zeros(len(cut), max(1, max(map(len, cut))), dtype=torch.int64)
    for row, document in zip(out, cut, strict=True):
        row[: len(document)] = torch.tensor([number.get(word, 1) for word in document], dtype=torch.int64)
    return out, torch.tensor([len(document) for document in cut]), len(number) + 2


def word_graph(documents: Sequence[Sequence[str]], window: int = 20) -> Graph:
    """The graph of documents and words, documents first.

    Weights: tf-idf, f log(n / n_w), between a document and a word that occurs in it f times, where n_w of n documents
    contain the word; log(p(v, w) / (p(v) p(w))) between two words if it is positive, where p is the fraction of windows
    that contain them.

    >>> g = word_graph([["a", "b"], ["a", "c"]])
    >>> g.size, g.edge_index[:, g.target < 2].tolist()
    (5, [[3, 4], [0, 1]])
    """
    from scipy import sparse

    words = {word: i for i, word in enumerate(sorted({word for document in documents for word in document}))}
    coded = [np.array([words[word] for word in document], np.int64) for document in documents]
    n, m = len(documents), len(words)
    rows = np.repeat(np.arange(n), [len(d) for d in coded])
    counts = sparse.csr_matrix((np.ones(len(rows)), (rows, np.concatenate(coded))), (n, m))
    tfidf = counts @ sparse.diags(np.log(n / np.bincount(counts.indices, minlength=m)))
    views = [np.lib.stride_tricks.sliding_window_view(d, min(window, len(d))) for d in coded if len(d)]
    columns = np.concatenate([view.ravel() for view in views])
    rows = np.repeat(np.arange(sum(map(len, views))), [view.shape[1] for view in views for _ in view])
    inside = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), (rows[-1] + 1, m)).sign()
    both = (inside.T @ inside).tocoo()
    alone = np.asarray(inside.sum(0)).ravel()
    pmi = np.log(both.data * inside.shape[0] / (alone[both.row] * alone[both.col]))
    keep = (both.row != both.col) & (pmi > 0)
    tfidf = tfidf.tocoo()
    source = np.concatenate([both.row[keep] + n, tfidf.row, tfidf.col + n])
    target = np.concatenate([both.col[keep] + n, tfidf.col + n, tfidf.row])
    weight = np.concatenate([pmi[keep], tfidf.data, tfidf.data]).astype(np.float32)
    order = np.lexsort((source, target))
    edges = torch.from_numpy(np.stack([source, target])[:, order].astype(np.int64))
    return Graph(edges, n + m, edge_weight=torch.from_numpy(weight[order]))


@lru_cache(maxsize=1)
def graph_of(dataset: str, root: Path | None = None) -> Graph:
    """`word_graph` of all documents, created once per process."""
    return word_graph(texts(dataset, root).documents)


# -- the networks: document numbers -> scores of the classes -------------------------------------------------------


def operators(config: Config, i: int, o: int) -> list[OperatorSpec]:
    """The operators of the network, from i channels to o classes."""
    h: Any = config.hidden
    match config.model:
        case "kim":  # in parallel
            return [conv1d(i, h, k, padding=k - 1) for k in (3, 4, 5)] + [pointwise(3 * h, o, ndim=1)]
        case "separable":  # in sequence
            blocks = [separable(a, h, 5, padding=2, ndim=1) for a in (i, h, h, h)]
            return [*blocks, pointwise(h, o, ndim=1)]
        case "textgcn":
            return [gcn(i, h), gcn(h, o)]
        case "sgc":
            return [sgc(i, o, k=2)]
    raise ValueError(f"there is no model {config.model!r}; there are {', '.join(MODELS)}")


class OnWords(nn.Module):
    """Convolutions along the words. The scores of a document do not depend on the other documents of its batch."""

    def __init__(self, config: Config, data: TextSet):
        super().__init__()
        self.words, self.lengths, count = numbered(data, config.length)
        self.vectors = nn.Embedding(count, config.width, padding_idx=0)
        nn.init.uniform_(self.vectors.weight, -0.25, 0.25)
        with torch.no_grad():
            self.vectors.weight[0] = 0
        *layers, last = operators(config, config.width, len(data.classes))
        self.layers, self.last = nn.ModuleList(GConv(spec) for spec in layers), GConv(last)
        self.drop, self.side_by_side = nn.Dropout(config.dropout or 0.0), config.model == "kim"

    def forward(self, documents: Tensor) -> Tensor:
        """(b,) -> (b, classes)."""
        lengths = self.lengths[documents]
        longest = max(1, int(lengths.max()))
        x = self.vectors(self.words[documents, :longest]).mT
        if self.side_by_side:  # windows that overlap a word
            found = [largest(conv(x), lengths + k - 1) for k, conv in zip((3, 4, 5), self.layers, strict=True)]
            y = F.relu(torch.cat(found, 1))
        else:
            there = (torch.arange(longest) < lengths[:, None])[:, None]
            for conv in self.layers:
                z = F.relu(conv(x)) * there
                x = x + z if x.shape == z.shape else z
            y = largest(x, lengths)
        scores: Tensor = self.last(self.drop(y)[..., None])
        return scores[..., 0]


def largest(x: Tensor, lengths: Tensor) -> Tensor:
    """Maximum over the first positions: (b, c, n), (b,) -> (b, c); of the first position only if the length is 0."""
    there = torch.arange(x.shape[-1]) < lengths.clamp(min=1)[:, None]
    return x.masked_fill(~there[:, None], -math.inf).amax(-1)


class OnGraph(nn.Module):
    """Graph convolutions on documents and words, with one-hot features, X = I, in CSR."""

    def __init__(self, config: Config, data: TextSet, graph: Graph):
        super().__init__()
        self.graph, n = graph, graph.size
        self.layers = nn.ModuleList(GConv(spec) for spec in operators(config, n, len(data.classes)))
        self.dropout = config.dropout or 0.0
        self.x = _diagonal(torch.ones(n))
        (self.mix_first,) = (
            c.name
            for c in self.layers[0].plan(self.x, graph).candidates  # type: ignore[operator]
            if c.name.endswith(":transform") and not c.reason
        )

    def forward(self, documents: Tensor) -> Tensor:
        """(b,) -> (b, classes)."""
        drop = self.training and self.dropout > 0
        x = _diagonal(F.dropout(torch.ones(self.graph.size), self.dropout)) if drop else self.x
        x = self.layers[0](x, self.graph, lowering=self.mix_first)
        for layer in self.layers[1:]:
            x = layer(F.dropout(F.relu(x), self.dropout, self.training), self.graph)
        return x[documents]


def _diagonal(values: Tensor) -> Tensor:
    n = len(values)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch's warning that CSR tensors are in beta
        return torch.sparse_csr_tensor(torch.arange(n + 1), torch.arange(n), values, (n, n), check_invariants=False)


def network(config: Config, root: Path | None = None) -> OnWords | OnGraph:
    """The network of a configuration."""
    data = texts(config.dataset, root)
    if config.model in ("kim", "separable"):
        return OnWords(config, data)
    return OnGraph(config, data, graph_of(config.dataset, root))


# -- one loop ------------------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """Indices of the documents for training, validation and testing."""

    train: Tensor
    val: Tensor
    test: Tensor


def split(data: TextSet, seed: int) -> Parts:
    """Split off a tenth of the training documents, chosen by the seed, for validation."""
    known = (~data.test).nonzero()[:, 0]
    known = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]
    return Parts(known[len(known) // 10 :], known[: len(known) // 10], data.test.nonzero()[:, 0])


@torch.no_grad()
def score(model: nn.Module, documents: Tensor, batch: int) -> Tensor:
    """Class scores of documents, in eval mode."""
    model.eval()
    return torch.cat([model(part) for part in documents.split(batch or len(documents))])


def fit(model: nn.Module, data: TextSet, config: Config) -> dict[str, Any]:
    """Train, keep the epoch with the lowest validation loss, and score the test documents once.

    Raises: ArithmeticError if the loss becomes NaN or infinite.
    """
    parts, batch = split(data, config.seed), config.batch or 0
    adam = torch.optim.Adam(model.parameters(), config.lr or 1e-3)
    generator = torch.Generator().manual_seed(config.seed)
    best, kept, epoch, at = math.inf, copy.deepcopy(model.state_dict()), 0, 0
    losses, clock = [], time.perf_counter()
    epochs, patience = config.epochs or 1, config.patience or 1
    for epoch in range(1, epochs + 1):
        model.train()
        order, total = parts.train[torch.randperm(len(parts.train), generator=generator)], 0.0
        for documents in order.split(batch or len(order)):
            adam.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(documents), data.labels[documents])
            loss.backward()
            adam.step()
            total += loss.item() * len(documents)
        losses.append(total / len(order))
        val = F.cross_entropy(score(model, parts.val, batch), data.labels[parts.val]).item()
        if not (math.isfinite(losses[-1]) and math.isfinite(val)):
            raise ArithmeticError(f"the loss became {losses[-1]} in epoch {epoch}: lower the learning rate")
        progress(epoch / epochs, f"epoch {epoch}, loss {losses[-1]:.3f}, validation {val:.3f}")
        if val < best:
            best, kept, at = val, copy.deepcopy(model.state_dict()), epoch
        elif epoch - at >= patience:
            break
    seconds = (time.perf_counter() - clock) / epoch
    model.load_state_dict(kept)
    right = {
        name: (score(model, documents, batch).argmax(1) == data.labels[documents]).double().mean().item()
        for name, documents in (("val_accuracy", parts.val), ("test_accuracy", parts.test))
    }
    return {
        **right,
        "val_loss": best,
        "epoch": at,
        "epochs_run": epoch,
        "train_loss": losses,
        "seconds_per_epoch": round(seconds, 3),
        "parameters": sum(p.numel() for p in model.parameters()),
        "sees_test_text": isinstance(model, OnGraph),
    }


def run(config: Config, place: Place) -> common.Outcome:
    """Run one network with one seed."""
    data = texts(config.dataset, place.root)
    common.seed_everything(config.seed)
    model = network(config, place.root)
    metrics = fit(model, data, config)
    return common.Outcome(metrics, [repr(layer.spec) for layer in model.modules() if isinstance(layer, GConv)])


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run."""
    data = texts(config.dataset, root)
    return common.Data(data.label, data.content_hash)


def report(rows: list[common.Row]) -> None:
    """Print one line per network and set."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["config"]["dataset"], row["config"]["model"]), []).append(row["metrics"])
    for (dataset, model), found in cells.items():
        accuracy = mean_std(100)([m["test_accuracy"] for m in found])
        cost = f"{found[0]['parameters']:,} parameters, {found[0]['seconds_per_epoch']:.1f} s an epoch"
        print(f"{dataset:6s} {model:10s} {accuracy:18s} {cost}")


EXPERIMENT = Experiment(
    name="text",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"dataset": "random", "epochs": 3, "width": 16, "hidden": 8},
    report=report,
    measured=("seconds_per_epoch",),
    tolerance={"test_accuracy": 0.02, "val_accuracy": 0.03, "val_loss": 0.05, "train_loss": 0.1},
    defaults={"seeds": 3},
)

_KIM = "Kim 2014, CNN-rand"
_YAO = "Yao, Mao and Luo 2019"
_WU = "Wu et al. 2019"
PUBLISHED = (
    Published("kim", "MR", 76.1, None, _KIM, "quoted in a later table", "10-fold cross-validation"),
    Published("kim", "TREC", 91.2, None, _KIM, "quoted in a later table", "TREC's split"),
    Published("textgcn", "MR", 76.7, None, _YAO, "quoted in a later table", "Text GCN's split"),
    Published("textgcn", "R8", 97.1, None, _YAO, "quoted in a later table", "Text GCN's split"),
    Published("sgc", "MR", 75.9, None, _WU, "read in source", "Text GCN's split"),
    Published("sgc", "R8", 97.2, None, _WU, "read in source", "Text GCN's split"),
)
TABLE = Table(
    name="text",
    experiment="text",
    label="config.model",
    labels=MODELS,
    cells=one("config.dataset", "metrics.test_accuracy"),
    format=mean_std(100),
    caption=(
        "Test accuracy in %, no pretrained vectors: convolutions along the words (kim, separable: inductive) and on "
        "the graph of documents and words (textgcn, sgc: transductive, the words of the test documents are in it), by "
        "one loop and one rule, the epoch of lowest validation loss."
    ),
    command="python -m experiments.sweep text",
    published=PUBLISHED,
)
FIGURE = Figure(
    name="text",
    experiment="text",
    draw=bars("config.model", "config.dataset", "metrics.test_accuracy"),
    title="Texts by class: test accuracy in %",
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
