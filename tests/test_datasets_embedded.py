"""Embedded data: deterministic, offline, and as informative as it claims."""

import socket

import numpy as np
import pytest
import torch

import datasets
from datasets import EMBEDDED, load_citation_like, load_digits, load_digits_knn, load_karate


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("embedded data touched the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", EMBEDDED)
def test_same_call_same_data_and_a_full_record(name):
    first, second = datasets.load(name), datasets.load(name)
    assert first.content_hash == second.content_hash and len(first.content_hash) == 16
    assert first.label == name and first.source and first.classes
    assert name in first.summary() and first.content_hash in first.summary()


def test_digits_split_is_stratified_disjoint_and_complete():
    digits = load_digits()
    both = torch.cat([digits.train_images, digits.test_images]).flatten(1)
    assert both.shape == (1797, 64) and both.min() == 0 and both.max() == 1 and both.dtype == torch.float32
    whole = load_digits_knn().data.x
    assert sorted(both.tolist()) == sorted(whole.tolist())
    shares = digits.test_labels.bincount() / (digits.train_labels.bincount() + digits.test_labels.bincount())
    assert (shares - 0.2).abs().max() < 0.01
    assert not torch.equal(load_digits(seed=1).test_labels, digits.test_labels)


def graph_sets():
    return [pytest.param(f, id=f.__name__) for f in (load_digits_knn, load_karate, load_citation_like)]


@pytest.mark.parametrize("build", graph_sets())
def test_graphs_are_simple_undirected_with_disjoint_masks(build):
    loaded = build()
    data = loaded.data
    assert data.is_undirected() and not data.has_self_loops()
    assert data.edge_index.unique(dim=1).shape == data.edge_index.shape
    assert data.edge_index.max() < data.num_nodes and data.x.dtype == torch.float32 and data.y.dtype == torch.int64
    assert data.y.unique().tolist() == list(range(len(loaded.classes)))
    assert (data.train_mask.int() + data.val_mask.int() + data.test_mask.int()).max() == 1


@pytest.mark.parametrize("build, sizes", [(load_digits_knn, [200, 500, 1000]), (load_citation_like, [100, 400, 1000])])
def test_planetoid_like_split(build, sizes):
    data = build().data
    assert [int(m.sum()) for m in (data.train_mask, data.val_mask, data.test_mask)] == sizes
    assert data.y[data.train_mask].bincount().unique().tolist() == [20]
    assert not torch.equal(build(seed=1).data.train_mask, data.train_mask)


def test_digits_knn_matches_its_known_size_and_homophily():
    data = load_digits_knn().data
    same = (data.y[data.edge_index[0]] == data.y[data.edge_index[1]]).float().mean()
    assert data.num_edges == 2 * 9929 and abs(same - 0.962) < 0.001
    assert data.edge_index[1].bincount().min() >= 8


def test_karate_is_zachary():
    import networkx

    data = load_karate().data
    ours = set(map(tuple, data.edge_index.T.tolist()))
    theirs = set(networkx.karate_club_graph().edges)
    assert ours == theirs | {(b, a) for a, b in theirs}
    assert data.train_mask.sum() == 4 and data.test_mask.sum() == 30 and not data.val_mask.any()


def homophily(data):
    return (data.y[data.edge_index[0]] == data.y[data.edge_index[1]]).float().mean().item()


@pytest.mark.parametrize("asked", [{"homophily": 0.2, "degree": 6.0}, {"homophily": 0.9}, {"degree": 12.0}])
def test_citation_like_has_the_statistics_it_was_asked_for(asked):
    wanted = {"homophily": 0.7, "degree": 4.0, "words_per_node": 18.0} | asked
    data = load_citation_like(**asked).data
    assert abs(homophily(data) - wanted["homophily"]) < 0.04
    assert abs(data.num_edges / data.num_nodes - wanted["degree"]) < 0.05 * wanted["degree"] + 0.1
    assert abs(data.x.sum(1).mean() - wanted["words_per_node"]) < 1
    assert set(data.x.unique().tolist()) == {0.0, 1.0}


def test_citation_like_words_and_edges_inform_and_together_more():
    """Nearest class mean of the training nodes, on words and on words averaged over neighbours; chance is 0.2."""

    def accuracy(data, smooth):
        x = data.x
        if smooth:
            x = x + torch.zeros_like(x).index_add_(0, data.edge_index[1], x[data.edge_index[0]])
        x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-9)
        centre = torch.stack([x[data.train_mask & (data.y == c)].mean(0) for c in range(5)])
        return ((x @ centre.T).argmax(1) == data.y)[data.test_mask].float().mean().item()

    graphs = [load_citation_like(seed=seed).data for seed in range(3)]
    words, both = (np.mean([accuracy(g, smooth) for g in graphs]) for smooth in (False, True))
    assert 0.4 < words < 0.8 and both > words + 0.1
    blind = load_citation_like(topic=0.0, homophily=0.2).data  # negative control: nothing to learn
    assert accuracy(blind, True) < 0.27


def test_citation_like_pins_its_numbers():
    """The generator's stream is numpy's PCG64, the same on every machine; a change here changes published rows."""
    data = load_citation_like().data
    assert (data.num_edges, int(data.x.sum()), data.y[:8].tolist()) == PINNED


PINNED = (6026, 26990, [4, 0, 4, 4, 4, 4, 4, 4])


@pytest.mark.parametrize(
    "bad", [{"nodes": 100}, {"classes": 1}, {"words": 3}, {"homophily": 1.5}, {"topic": -0.1}, {"degree": 0.0}]
)
def test_options_out_of_range(bad):
    with pytest.raises(ValueError):
        load_citation_like(**bad)
    with pytest.raises(ValueError, match="test_fraction"):
        load_digits(test_fraction=0.0)
    with pytest.raises(ValueError, match="k must be"):
        load_digits_knn(k=0)
