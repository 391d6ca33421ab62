"""Data sets without a download: included in libraries, or generated from a seed.

digits and digits-knn: 1797 handwritten digits, 8x8 (scikit-learn; the test part of UCI optdigits, Alpaydin and Kaynak
1998). karate: Zachary 1977, with the four communities of PyG. citation-like: generated here.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gconv.arguments import checked

from .root import GraphSet, ImageSet, hash_parts

_DIGITS = "scikit-learn load_digits (UCI optdigits, test part)"


@checked
def load_digits(seed: int = 0, test_fraction: float = 0.2) -> ImageSet:
    """Handwritten digits with a stratified split.

    Args:
        seed: of the split; the same seed gives the same split everywhere.
        test_fraction: fraction of each class used for testing, in (0, 1).

    Shapes: images (b, 1, 8, 8) float32 in [0, 1]; 1437 train and 360 test at the default; labels 0..9.

    Raises: ValueError: test_fraction or seed out of range.

    >>> digits = load_digits()
    >>> tuple(digits.train_images.shape), digits.test_images.max().item()
    ((1437, 1, 8, 8), 1.0)
    """
    from sklearn.model_selection import train_test_split

    _check_seed(seed)
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction is in (0, 1), not {test_fraction}.")
    x, y = _digits()
    train, test = train_test_split(np.arange(len(y)), test_size=test_fraction, random_state=seed, stratify=y)
    images = x.reshape(-1, 1, 8, 8)
    parts = images[train], y[train], images[test], y[test]
    return ImageSet(
        label="digits",
        classes=tuple("0123456789"),
        content_hash=hash_parts({str(i): part for i, part in enumerate(parts)}),
        source=f"{_DIGITS}; stratified split, seed {seed}",
        train_images=parts[0],
        train_labels=parts[1],
        test_images=parts[2],
        test_labels=parts[3],
    )


@checked
def load_digits_knn(k: int = 8, seed: int = 0) -> GraphSet:
    """The digits as one graph: each image is a node, connected to the k most similar images (symmetrised).

    The graph is derived from the features, so results say little about citation graphs.

    Args:
        k: neighbours before symmetrising, 1 <= k < 1797.
        seed: of the split: 20 training nodes per class, 500 validation, 1000 test.

    Shapes: x (1797, 64) float32 in [0, 1]; edge_index (2, e), both directions; y 0..9.

    Raises: ValueError: k or seed out of range.

    >>> load_digits_knn().data.num_edges // 2
    9929
    """
    _check_seed(seed)
    x, y = _digits()
    if not 1 <= k < len(y):
        raise ValueError(f"k must be in 1..{len(y) - 1}, not {k}.")
    pixels = np.rint(x.numpy() * 16).astype(np.int64)  # integers, so distances are exact for any number of threads
    square = (pixels**2).sum(1)
    distance = square[:, None] + square - 2 * pixels @ pixels.T
    np.fill_diagonal(distance, np.iinfo(np.int64).max)
    near = np.argsort(distance, axis=1, kind="stable")[:, :k]  # the first of equal ones
    joined = np.zeros(distance.shape, bool)
    np.put_along_axis(joined, near, True, axis=1)
    edge_index = torch.from_numpy(np.stack((joined | joined.T).nonzero())).flip(0)
    masks = _masks(y, np.random.default_rng(seed), 20, 500, 1000)
    source = f"{k}-NN graph of {_DIGITS}; Planetoid-like split, seed {seed}"
    return _graph_set("digits-knn", source, tuple("0123456789"), x, edge_index, y, masks)


def load_karate() -> GraphSet:
    """Zachary's karate club: 34 members, 78 friendships, four communities.

    As in PyG: one training node per community, one-hot features. All other nodes are for testing; no validation nodes.

    Shapes: x (34, 34); edge_index (2, 156); y 0..3.

    >>> load_karate().data.train_mask.sum().item()
    4
    """
    from torch_geometric.datasets import KarateClub

    graph = KarateClub()[0]
    masks = torch.stack([graph.train_mask, torch.zeros_like(graph.train_mask), ~graph.train_mask])
    names = tuple(f"community {c}" for c in range(4))
    source = "torch_geometric KarateClub (Zachary 1977; modularity communities)"
    return _graph_set("karate", source, names, graph.x, graph.edge_index, graph.y, masks)


@checked
def load_citation_like(
    nodes: int = 1500,
    classes: int = 5,
    words: int = 500,
    degree: float = 4.0,
    homophily: float = 0.7,
    words_per_node: float = 18.0,
    topic: float = 0.3,
    validation: int = 400,
    test: int = 1000,
    seed: int = 0,
) -> GraphSet:
    """A generated citation-like network: a contextual stochastic block model.

    y_j ~ uniform; P(edge) = p_in if y_i = y_j, else p_out, such that a node has about `degree` neighbours, of which a
    fraction `homophily` has the same class. A node has about `words_per_node` of `words` words; each class has its own
    words // classes words, from which a fraction `topic` of a node's words is drawn, and the rest from all words. With
    the defaults, as for Cora, words alone give moderate and words with edges high accuracy. Deterministic.

    Args:
        nodes: at least classes * 20 + validation + test.
        classes: at least 2, of equal size.
        words: size of the vocabulary, at least one per class.
        degree: mean number of neighbours.
        homophily: fraction of edges within a class, in [0, 1]; 1 / classes is uninformative.
        words_per_node: mean number of words.
        topic: the informative fraction of them, in [0, 1].
        validation: number of validation nodes; there are 20 training nodes per class.
        test: number of test nodes.
        seed: random seed.

    Shapes: x (nodes, words) float32, 0 or 1; edge_index (2, e), both directions, no self-loops; y 0..classes-1.

    Raises: ValueError: sizes or fractions out of range.

    Reference: Deshpande et al., "Contextual Stochastic Block Models", NeurIPS 2018.

    >>> load_citation_like().content_hash == load_citation_like(seed=0).content_hash != load_citation_like(seed=1)
    True
    """
    if classes < 2 or nodes < 20 * classes + validation + test or words < classes:
        raise ValueError(
            f"{nodes} nodes, {classes} classes and {words} words: take at least 2 classes, a word for each, and nodes "
            f"for 20 x {classes} training + {validation} validation + {test} test."
        )
    if not (0 <= homophily <= 1 and 0 <= topic <= 1 and 0 < degree < nodes / classes):
        raise ValueError(f"homophily and topic are in [0, 1], degree in (0, {nodes / classes:g}).")
    if min(validation, test) < 0 or not 0 < words_per_node < float("inf"):
        raise ValueError(
            f"validation and test are at least 0 and words_per_node is positive, not {validation}, {test} and "
            f"{words_per_node}."
        )
    _check_seed(seed)
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(nodes) % classes)
    inside = degree * homophily * classes / nodes
    outside = degree * (1 - homophily) * classes / (nodes * (classes - 1))
    pairs = []
    for i in range(nodes):  # row by row, so that memory stays O(nodes)
        later = np.where(y[i + 1 :] == y[i], inside, outside)
        hits = i + 1 + np.flatnonzero(rng.random(len(later)) < later)
        pairs.append(np.stack([np.full(len(hits), i), hits]))
    half = np.concatenate(pairs, 1)
    edges = np.concatenate([half, half[::-1]], 1)
    owned = words // classes
    rate = np.full((classes, words), words_per_node * (1 - topic) / words)
    for c in range(classes):
        rate[c, c * owned : (c + 1) * owned] += words_per_node * topic / owned
    x = torch.from_numpy((rng.random((nodes, words)) < rate[y]).astype(np.float32))
    edge_index = torch.from_numpy(edges[:, np.lexsort(edges)])
    labels = torch.from_numpy(y)
    masks = _masks(labels, rng, 20, validation, test)
    source = (
        f"generated: contextual block model, seed {seed}, {nodes} nodes, {classes} classes, {words} words, "
        f"degree {degree:g}, homophily {homophily:g}, {words_per_node:g} words a node, topic {topic:g}"
    )
    names = tuple(f"topic {c}" for c in range(classes))
    return _graph_set("citation-like", source, names, x, edge_index, labels, masks)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is in 0..{2**32 - 1}, not {seed}.")


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    return torch.from_numpy(bunch.data / 16).float(), torch.from_numpy(bunch.target).long()


def _masks(y: Tensor, rng: np.random.Generator, per_class: int, validation: int, test: int) -> Tensor:
    """A split as in Planetoid, (3, n) bool: per_class training nodes of each class, validation, test."""
    order = torch.from_numpy(rng.permutation(len(y)))
    rank = torch.stack([(y[order] == c).cumsum(0) for c in range(int(y.max()) + 1)])  # of its class so far, by order
    train = rank.gather(0, y[order][None])[0] <= per_class
    rest = order[~train]
    masks = torch.zeros(3, len(y), dtype=torch.bool)
    for row, chosen in enumerate((order[train], rest[:validation], rest[validation : validation + test])):
        masks[row, chosen] = True
    return masks


def _graph_set(
    label: str, source: str, classes: tuple[str, ...], x: Tensor, edge_index: Tensor, y: Tensor, masks: Tensor
) -> GraphSet:
    from torch_geometric.data import Data

    train_mask, val_mask, test_mask = masks
    content = hash_parts({"x": x, "edge_index": edge_index, "y": y, "masks": masks})
    data = Data(x=x, edge_index=edge_index, y=y, train_mask=train_mask, val_mask=val_mask, test_mask=test_mask)
    return GraphSet(label=label, classes=classes, content_hash=content, source=source, data=data)
