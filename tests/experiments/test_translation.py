import gzip
import itertools
import json
import math
import re
from dataclasses import replace

import pytest
import torch

from datasets import DataCorrupt, DataUnavailable
from datasets.multi30k import LANGUAGES, PARTS, Pairs, load_multi30k
from experiments.harness.common import Results
from experiments.translation import predict, report, train
from experiments.translation.corpus import END, START, batches, code, corpus, learn_units, padded, units_of
from experiments.translation.networks import MODELS, Gated, OnGraph, Sentences, sentence_graph
from experiments.translation.search import beam_search, translate
from experiments.translation.train import Config, bleu, fit, network
from gconv import Grid

TINY = Config("conv", "random", units=60, width=16, heads=2, feed=16, layers=2, dropout=0.1, epochs=2, tokens=300,
              lr=0.01, warmup=10, beam=2)  # fmt: skip


def tiny(model, **more):
    config = replace(TINY, model=model, **more)
    torch.manual_seed(0)
    units = units_of("random", config.units)
    return config, units, network(config, units.get_vocab_size())


def sources(units, count=4):
    return code(units, corpus("random").val).source[:count]


def test_smoke_makes_a_row_for_every_network_and_goes_on_where_it_was(tmp_path, capsys):
    argv = ["--smoke", "--seeds", "1", "--results", str(tmp_path / "rows.jsonl")]
    train.main(argv)
    rows = Results(tmp_path / "rows.jsonl").rows()
    assert [row["config"]["model"] for row in rows] == list(MODELS)
    assert all(row["metrics"]["test_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a") for row in rows)
    train.main(argv)
    assert Results(tmp_path / "rows.jsonl").rows() == rows and "transformer" in capsys.readouterr().out


def test_official_runs_and_equal_parameters():
    runs = train.expand(Config(), 3)
    assert [(c.model, c.seed) for c in runs[:5]] == [*((m, 0) for m in MODELS), ("conv", 1)] and len(runs) == 8
    sizes = {c.model: sum(p.numel() for p in network(c, c.units).parameters()) for c in runs[:4]}
    assert abs(sizes["conv"] / sizes["transformer"] - 1) < 0.03 and sizes["graph"] == sizes["conv"]
    published = sum(p.numel() for p in network(Config("transformer"), 9712).parameters())
    assert published == 2_568_192 + 2 * 256  # the published network has no norms at the ends


@pytest.mark.parametrize("model", [pytest.param(m, marks=() if m == "conv" else pytest.mark.slow) for m in MODELS])
def test_networks_learn_a_generated_language(model):
    """Negative control: the network before training. The transformer's BLEU depends on rounding the most (18 to 45)."""
    epochs, lr, dropout, floor = {
        "conv": (20, 0.01, 0.0, 30), "graph": (20, 0.01, 0.0, 30), "light": (60, 0.005, 0.0, 30),
        "transformer": (120, 0.01, 0.1, 15),
    }[model]  # fmt: skip
    config, units, net = tiny(model, width=32, epochs=epochs, lr=lr, dropout=dropout)
    data = corpus("random")
    score = lambda: bleu(translate(net, units, list(data.test.source)), data.test.target)[0]  # noqa: E731
    assert score() < 5
    found = fit(net, code(units, data.train), code(units, data.val), config)
    assert found["val_loss"][-1] < 0.4 * found["val_loss"][0] and score() > floor


@pytest.mark.parametrize("model", ["conv", pytest.param("light", marks=pytest.mark.slow)])
def test_a_run_stopped_at_any_step_goes_on_with_the_same_numbers(model, tmp_path, monkeypatch):
    def trained(path):
        config, units, net = tiny(model)
        data = corpus("random")
        found = fit(net, code(units, data.train), code(units, data.val), config, path)
        del found["seconds_per_epoch"]
        return found, net

    (whole, net), calls, real = trained(None), itertools.count(), train.loss_of

    def killed(*args):
        if next(calls) == 11:  # in the second epoch
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(train, "SAVED_EVERY", 0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "loss_of", killed)
        trained(tmp_path / "c.pt")
    again, resumed = trained(tmp_path / "c.pt")
    assert again == whole
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("model", MODELS)
def test_word_by_word_equals_the_whole_sentence_and_nothing_reads_ahead(model):
    _, units, net = tiny(model)
    net.eval()
    source, target = padded(sources(units)), torch.randint(4, 40, (4, 9))
    memory = net.encode(source)
    whole, _ = net.decode(target, memory)
    state, steps = None, []
    for place in range(9):
        x, state = net.decode(target[:, place : place + 1], memory, state, place)
        steps.append(x)
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-5)
    changed = target.clone()
    changed[:, 5] += 1
    other, _ = net.decode(changed, memory)
    assert torch.equal(other[:, :5], whole[:, :5])
    assert not torch.allclose(other[:, 5:], whole[:, 5:], atol=1e-3)  # negative control


@pytest.mark.parametrize("model", MODELS)
def test_translations_do_not_depend_on_the_batch(model):
    _, units, net = tiny(model)
    net.eval()
    rows = sources(units)
    assert len({len(row) for row in rows}) > 1
    together = net.encode(padded(rows))
    for i, row in enumerate(rows):
        assert torch.allclose(together.keys[i, : len(row)], net.encode(row[None]).keys[0], atol=1e-5)
    assert beam_search(net, padded(rows), 3, 6) == [beam_search(net, row[None], 3, 6)[0] for row in rows]


class Bigrams(torch.nn.Module):
    """A network whose next word depends on the last one and on the sentence."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def encode(self, source):
        class Rows(tuple):
            def repeated(self, times):
                return source[:, 0].repeat_interleave(times)

        return Rows()

    def decode(self, target, memory, state, start):
        return torch.stack([memory[:, None], target], -1), [(memory,)]

    def logits(self, x):
        return self.table[x[..., 0], x[..., 1]]


def test_beam_search_against_all_sentences():
    words, longest = 7, 4
    torch.manual_seed(1)
    table = 2 * torch.randn(12, words, words)
    source = torch.arange(4, 12)[:, None]
    found = beam_search(Bigrams(table), source, 64, longest)
    greedy = beam_search(Bigrams(table), source, 1, longest)
    logp = table.log_softmax(-1)
    differ = 0
    for row, number in enumerate(source[:, 0]):
        best, score = [], -math.inf
        for length in range(longest):
            for sentence in itertools.product(range(4, words), repeat=length):
                path = [START, *sentence, END]
                total = sum(logp[number, a, b].item() for a, b in itertools.pairwise(path)) / (length + 1)
                best, score = (list(sentence), total) if total > score else (best, score)
        assert found[row] == best
        differ += greedy[row] != best
    assert differ  # one beam is not enough: the search matters


def test_graph_of_neighbours_is_the_convolution():
    torch.manual_seed(0)
    conv, graph = Gated(4, 5, False), OnGraph(4)
    with torch.no_grad():  # relations: from before, from after, skipping one from before, from after; itself
        graph.conv.weight.copy_(conv.conv.weight[[1, 3, 0, 4, 2]])
        graph.conv.bias.copy_(conv.conv.bias)
    there = torch.arange(6) < torch.tensor([6, 1, 4])[:, None]
    x = torch.randn(3, 6, 4)

    def both(skips):
        sentences = Sentences(there, sentence_graph(there.sum(1), skips))
        return conv(x, sentences, None)[0][there], graph(x, sentences, None)[0][there]

    assert torch.allclose(*both((2,)), atol=1e-5)
    assert not torch.allclose(*both((2, 4)), atol=1e-2)  # negative control


def test_light_taps_are_averages():
    _, _, net = tiny("light")
    conv = net.encoder[0].mix.conv
    matrix = torch.stack([conv(column[None])[0] for column in torch.eye(9)[:, None].expand(9, 16, 9)], -1)
    assert matrix.shape == (16, 9, 9) and bool((matrix >= 0).all()) and conv.spec.name == "depthwise"
    assert torch.allclose(matrix[:, 1:-1].sum(-1), torch.ones(16, 7)) and torch.equal(matrix[0], matrix[7])
    assert not torch.equal(matrix[0], matrix[8])  # another head
    assert conv.at(Grid((9,))).shape[0] == 9 * 16


def test_units_are_learnt_from_training_pairs_and_give_the_text_back():
    units = units_of("random", 60)
    data = corpus("random")
    assert units.to_str() == learn_units((*data.train.source, *data.train.target), 60).to_str()
    for sentence in (*data.val.source, *data.test.target):
        assert units.decode(units.encode(sentence).ids) == sentence
    order = batches(code(units, data.train), 200, torch.Generator().manual_seed(0))
    assert sorted(itertools.chain(*order)) == list(range(160))
    assert order == batches(code(units, data.train), 200, torch.Generator().manual_seed(0))


def test_loss_and_bleu_by_hand():
    _, units, net = tiny("conv")
    net.eval()
    data = code(units, corpus("random").val)
    loss, words = train.loss_of(net, data, [0, 1])
    total = 0.0
    for i in (0, 1):
        logits = net(data.source[i][None], data.target[i][None, :-1]).log_softmax(-1)
        total -= logits[range(len(logits)), data.target[i][1:]].sum().item()
    assert words == sum(len(data.target[i]) - 1 for i in (0, 1)) and math.isclose(
        loss.item(), total / words, rel_tol=1e-5
    )
    # four of five words, then 3 / 4, 2 / 3 and 1 / 2; equal lengths
    score, _ = bleu(["the cat sat on mats"], ["the cat sat on it"])
    assert math.isclose(score, 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, rel_tol=1e-6)
    assert (
        bleu(["The cat sat on it"], ["the cat sat on it"], lower=True)[0]
        > bleu(["The cat sat on it"], ["the cat sat on it"])[0]
    )


# -- data ----------------------------------------------------------------------------------------------------------


def files(folder, **other):
    (folder / "multi30k").mkdir(parents=True)
    for part, language in itertools.product(PARTS, LANGUAGES):
        text = gzip.compress(f"a {language}.\nb {part} \n".encode(), mtime=0)
        (folder / "multi30k" / f"{part}.{language}.gz").write_bytes(other.get(f"{part}_{language}", text))


def test_multi30k_is_read(tmp_path):
    files(tmp_path)
    found = load_multi30k(tmp_path)
    assert found.val == Pairs(("a en.", "b val"), ("a de.", "b val"))
    assert load_multi30k(tmp_path / "multi30k").content_hash == found.content_hash


@pytest.mark.parametrize(
    "blob, says",
    [
        (b"plain text", "not a whole gzip"),
        (gzip.compress(b"a\nb\n")[:-9], "not a whole gzip"),
        (gzip.compress(b"\xff\n"), "not UTF-8"),
        (gzip.compress(b"a\n\nb\n"), "line 2 is empty"),
        (gzip.compress(b""), "no lines"),
        (gzip.compress(b"a\n"), "1 sentences in English and 2"),
        (gzip.compress(bytes(2**24 + 1)), "more than 16 MiB"),
    ],
    ids=["text", "cut", "latin", "empty line", "empty", "one line", "large"],  # a blob holds the second it was made in
)
def test_damaged_pairs_are_one_sentence(tmp_path, blob, says):
    files(tmp_path, val_en=blob)
    with pytest.raises(DataCorrupt, match=says):
        load_multi30k(tmp_path)


def test_absent_pairs_and_bad_settings_are_one_sentence(tmp_path, capsys):
    with pytest.raises(DataUnavailable, match=r"train\.en\.gz"):
        load_multi30k(tmp_path)
    with pytest.raises(SystemExit, match="Multi30k is not there"):
        train.main(["--data-root", str(tmp_path), "--results", str(tmp_path / "r.jsonl")])
    for bad, says in (
        (["--width", "12"], "multiple"),
        (["--lr", "nan"], "positive"),
        (["--units", "4"], "at least 50"),
    ):
        with pytest.raises(SystemExit):
            train.main(bad)
        assert says in "".join(capsys.readouterr())


@pytest.mark.data
def test_real_pairs():
    found = load_multi30k()
    assert [len(pairs.source) for pairs in (found.train, found.val, found.test)] == [29000, 1014, 1000]
    assert found.test.target[0] == "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt."


# -- predict -------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    config, units, net = tiny("conv")
    predict.save(net, units, config, tmp_path / "c.safetensors")
    return tmp_path / "c.safetensors"


def test_predict_answers_and_draws(checkpoint, tmp_path, capsys):
    net, units = predict.load(checkpoint)
    predict.main(["bab dig.", "fug", "--checkpoint", str(checkpoint), "--picture", str(tmp_path / "p.png")])
    assert capsys.readouterr().out.splitlines() == translate(net, units, ["bab dig.", "fug"])
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    weights = predict.alignment(net, sources(units)[0], torch.tensor([START, 5, 6]))
    assert torch.allclose(weights.sum(1), torch.ones(3))


@pytest.mark.parametrize(
    "sentence, says",
    [
        ("", "is empty"),
        (" \t\n", "is empty"),
        ("狗 bab", "'狗', which is not Latin"),
        ("собака", "not Latin"),
        ("☃ ☃☃ 12", "no word that the network knows"),
        ("xxx", "no word that the network knows"),
        ("bab dig " * 200, "at most 100"),
        ("b" * 100_000, "100,000 characters"),
    ],
)
def test_sentences_that_cannot_be_translated(checkpoint, sentence, says):
    with pytest.raises(SystemExit, match=says) as error:
        predict.main([sentence, "--checkpoint", str(checkpoint)])
    assert len(str(error.value).splitlines()) == 1


def test_checkpoints_that_are_none_of_ours(checkpoint, tmp_path):
    described = checkpoint.with_suffix(".json")
    whole, weights = described.read_text(), checkpoint.read_bytes()

    def refused(says):
        with pytest.raises(SystemExit, match=says) as error:
            predict.main(["bab", "--checkpoint", str(checkpoint)])
        assert len(str(error.value).splitlines()) == 1

    text = json.loads(whole)
    for change, says in (
        ({"format": "gconv translation 0"}, "format 'gconv translation 0'"),
        ({"config": {**text["config"], "model": "transformer"}}, "does not fit"),
        ({"config": {**text["config"], "width": 20}}, "does not fit"),
        ({"config": {"colour": 1}}, "no network of this version"),
        ({"units": {"version": "9"}}, "no network of this version"),
    ):
        described.write_text(json.dumps({**text, **change}))
        refused(says)
    described.write_text("[]")
    refused("not the description")
    described.write_text(whole)
    checkpoint.write_bytes(weights[:-7] + b"1234567")
    refused("does not fit")
    checkpoint.write_bytes(weights[:100])
    refused("does not fit")
    checkpoint.unlink()
    refused("there is no checkpoint")
    with pytest.raises(SystemExit, match="give an English sentence"):
        predict.main([])
    with pytest.raises(SystemExit, match="--beam must be at least 1"):
        predict.main(["bab", "--beam", "0"])


def test_the_committed_network_translates(capsys):
    if not predict.COMMITTED.is_file():
        pytest.skip("no network is committed")
    both = [predict.COMMITTED, predict.COMMITTED.with_suffix(".json")]
    assert sum(path.stat().st_size for path in both) <= 1e6
    predict.main(["Two dogs are playing in the snow.", "--beam", "2"])
    found = capsys.readouterr().out.strip()
    assert re.search("[Hh]und", found) and "Schnee" in found


def test_train_writes_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict, "SMALL", replace(TINY, epochs=1))
    path = tmp_path / "new" / "c.safetensors"
    predict.main(["--train", "--checkpoint", str(path)])
    assert "BLEU" in capsys.readouterr().out and not list(path.parent.glob("*.resume.pt"))
    assert predict.load(path)[0].embedding.weight.dtype == torch.float32


def test_training_does_not_go_on_from_a_checkpoint_of_other_data(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "SMALL", replace(TINY, epochs=1))
    path = tmp_path / "c.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(predict, "save", lambda *args, **about: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            predict.main(["--train", "--checkpoint", str(path)])
    data = corpus("random")
    monkeypatch.setattr(predict, "corpus", lambda *args: replace(data, content_hash="another"))
    with pytest.warns(UserWarning, match="discarded, the run starts again: saved by other code or from other data"):
        predict.main(["--train", "--checkpoint", str(path)])


def test_table_says_what_is_missing():
    assert "conv (3), transformer (3), light (1), graph (1)" in report.TABLE.remarks([])[0]
