from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets import DataCorrupt, DataUnavailable
from datasets.text import load_text
from experiments.harness.common import Results
from experiments.text import classify
from experiments.text.classify import Config, OnGraph, expand, fit, network, split, texts, word_graph


def tiny(model, **more):
    return replace(expand(Config(model=model, dataset="random", width=12), 1)[0], hidden=8, **more)


def files(folder, clean=b"a b\nc d\na\nd e f\n", marks=b"0\ttrain\tx\n1\ttrain\ty\n2\ttest\tx\n3\ttest\ty\n"):
    folder.mkdir(parents=True)
    (folder / "clean.txt").write_bytes(clean), (folder / "split.txt").write_bytes(marks)


def test_smoke_makes_a_row_for_every_network_and_goes_on_where_it_was(tmp_path, capsys):
    argv = ["--smoke", "--seeds", "1", "--results", str(tmp_path / "rows.jsonl")]
    classify.main(argv)
    rows = Results(tmp_path / "rows.jsonl").rows()
    assert {row["config"]["model"] for row in rows} == set(classify.MODELS)
    assert {row["metrics"]["sees_test_text"] for row in rows if row["config"]["model"] == "kim"} == {False}
    classify.main(argv)
    assert Results(tmp_path / "rows.jsonl").rows() == rows and "textgcn" in capsys.readouterr().out


@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=() if m == "sgc" else pytest.mark.slow) for m in classify.MODELS]
)
def test_networks_learn_repeat_and_read_no_test_label(model):
    batch = 10 if model in ("kim", "separable") else 0
    config, data = tiny(model, epochs=25, batch=batch, lr=0.02, patience=25), texts("random")

    def trained(labels):
        torch.manual_seed(0)
        return fit(network(config), replace(data, labels=labels), config)

    first, hidden = trained(data.labels), torch.where(data.test, 0, data.labels)
    assert first["test_accuracy"] > 0.7
    blind = trained(hidden)
    same = first.keys() - {"test_accuracy", "seconds_per_epoch"}
    assert {k: blind[k] for k in same} == {k: first[k] for k in same}


@pytest.mark.parametrize("model", ["kim", "separable"])
def test_scores_of_a_document_do_not_depend_on_its_batch(model):
    data = texts("random")
    short = replace(data, documents=tuple(d[: 1 + i % 12] for i, d in enumerate(data.documents)))
    net = classify.OnWords(tiny(model), short).eval()
    together = net(torch.arange(12))
    alone = torch.cat([net(torch.tensor([i])) for i in range(12)])
    assert torch.allclose(together, alone, atol=1e-6)
    net.words[0, 0] = 1 + net.words[0, 0] % 3  # negative control: its own words count
    assert not torch.allclose(net(torch.arange(12))[0], together[0], atol=1e-6)


def test_networks_on_words_never_see_test_documents():
    data = texts("random")
    other = replace(
        data, documents=tuple(("new",) * 3 if t else d for d, t in zip(data.documents, data.test, strict=True))
    )
    (a, _, n), (b, _, m) = (classify.numbered(d, 20) for d in (data, other))
    assert n == m and torch.equal(a[~data.test], b[~data.test]) and b[data.test].unique().tolist() == [0, 1]


def test_word_graph_against_its_definition():
    documents = [["a", "b", "a", "c", "d"], ["b", "c", "e"], ["e"]]
    graph, words, n = word_graph(documents, window=3), "abcde", 3
    windows = [w for d in documents for w in (d[i : i + 3] for i in range(max(1, len(d) - 2)))]
    p = lambda *ws: sum(all(w in v for w in ws) for v in windows) / len(windows)  # noqa: E731
    expected = np.zeros((8, 8))
    for i, d in enumerate(documents):
        for w in set(d):
            value = d.count(w) * np.log(3 / sum(w in other for other in documents))
            expected[i, n + words.index(w)] = expected[n + words.index(w), i] = value
    for i, v in enumerate(words):
        for j, w in enumerate(words):
            if v != w and p(v, w):
                expected[n + i, n + j] = max(0.0, np.log(p(v, w) / (p(v) * p(w))))
    found = torch.zeros(8, 8).index_put((graph.target, graph.source), graph.edge_weight)
    assert np.allclose(found, expected, atol=1e-6)


def test_splits_are_disjoint_and_move_with_the_seed():
    parts = split(texts("random"), 0)
    assert sorted(torch.cat(parts).tolist()) == list(range(90)) and len(parts.val) == 6
    assert not torch.equal(parts.val, split(texts("random"), 1).val)


def test_texts_are_read_and_the_answer_is_taken_out_of_trec(tmp_path):
    files(tmp_path / "text" / "mr"), files(tmp_path / "text" / "TREC")
    mr, trec = load_text("MR", tmp_path), load_text("TREC", tmp_path)
    assert mr.documents == (("a", "b"), ("c", "d"), ("a",), ("d", "e", "f")) and mr.classes == ("x", "y")
    assert mr.labels.tolist() == [0, 1, 0, 1] and mr.test.tolist() == [False, False, True, True]
    assert trec.documents == (("b",), ("d",), (), ("e", "f"))
    config = tiny("kim", length=5)
    assert classify.OnWords(config, trec).eval()(torch.arange(4)).isfinite().all()  # an empty document too


@pytest.mark.parametrize(
    "what, says",
    [
        ({"clean": b"\xff\n"}, "not UTF-8"),
        ({"clean": b"a\n"}, "4 lines, and clean.txt has 1 documents"),
        ({"marks": b"0 train x\n" * 4}, "line 1: expected"),
        ({"marks": b"0\ttrain\tx\n" * 3 + b"0\ttest\ty\n"}, "a class without training documents"),
    ],
)
def test_damaged_texts_are_one_sentence(tmp_path, what, says):
    files(tmp_path / "text" / "R8", **what)
    with pytest.raises(DataCorrupt, match=says):
        load_text("R8", tmp_path)


def test_absent_texts_and_bad_settings_are_one_sentence(tmp_path, capsys):
    with pytest.raises(DataUnavailable, match=r"clean\.txt, split\.txt"):
        load_text("R8", tmp_path)
    with pytest.raises(SystemExit, match="R8 is not there"):
        classify.main(["--dataset", "R8", "--data-root", str(tmp_path), "--results", str(tmp_path / "r.jsonl")])
    with pytest.raises(SystemExit):
        classify.main(["--dropout", "2"])
    assert "probability" in "".join(capsys.readouterr())


@pytest.mark.data
def test_real_texts():
    found = {name: load_text(name) for name in ("MR", "R8", "TREC")}
    assert [(int((~d.test).sum()), int(d.test.sum()), len(d.classes)) for d in found.values()] == [
        (7108, 3554, 2), (5485, 2189, 8), (5452, 500, 6),
    ]  # fmt: skip
    assert found["TREC"].documents[0][:3] == ("how", "did", "serfdom")


def test_graph_network_is_the_chain_of_its_matrices():
    data = texts("random")
    net = network(tiny("textgcn")).eval()
    assert isinstance(net, OnGraph)
    x = torch.eye(net.graph.size)
    y = net.layers[1](torch.relu(net.layers[0](x, net.graph)), net.graph)
    assert torch.allclose(net(torch.arange(len(data.labels))), y[: len(data.labels)], atol=1e-5)
