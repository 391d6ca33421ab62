"""Translation of Multi30k, English to German: convolutions, attention, lightweight and graph convolutions.

    conv         ConvS2S: gated convolutions, 4 layers of width 5 in the encoder, 5 causal ones of width 3 in the
                 decoder, attention in each
    transformer  4 + 4 layers, 4 heads; within 3 % of conv's number of parameters
    light        the transformer with lightweight convolutions (widths 3 to 9) instead of self-attention
    graph        conv with a graph convolution over the sentence as its encoder: equally many parameters, with edges to
                 neighbours and skip edges over 2, 4 and 8 words (the mean over the three, one matrix per direction)

Protocol: joint byte pair encoding with 4,000 units, learned from the training pairs. 20 epochs in batches of at most
1,250 tokens including padding, about as many updates as published (8,000). Adam (0.9, 0.98) on the cross-entropy with
label smoothing 0.1; the learning rate increases linearly to its peak and then decreases with the inverse square root of
the step. The epoch with the lowest validation loss is kept. The test sentences are translated once, at the end, by beam
search with 5 beams; BLEU by sacrebleu on the raw text, with its signature in the row. Three seeds for conv and
transformer, one for the others.

Settings: those of the published tiny transformer (width 128, feed-forward width 256, dropout 0.3), with these
differences: 4,000 units instead of about 10,000 (and so 1.8M parameters instead of 2.6M), batches of 1,250 tokens
instead of 8,192, pre-norm layers, a lower learning rate with half the warm-up, cased and untokenised text. Not tuned.

    python -m experiments.sweep translation                       run missing runs, one process per run
    python -m experiments.translation.train --model conv --epochs 5
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.progress import report as progress
from experiments.harness.render import mean_std
from experiments.translation.corpus import PAD, Coded, batches, code, corpus, padded, units_of
from experiments.translation.networks import MODELS, Network
from experiments.translation.search import translate
from gconv import GConv

SAVED_EVERY = 60.0  # seconds between checkpoints


@dataclass(frozen=True)
class Config:
    """Network and training options."""

    model: Literal["conv", "transformer", "light", "graph", "all"] = "all"
    """Network."""
    dataset: Literal["multi30k", "random"] = "multi30k"
    """random: a generated language, for testing."""
    units: int = 4000
    """Maximum number of units of the byte pair encoding."""
    width: int = 128
    """Number of channels."""
    heads: int = 4
    """Number of heads of attention and of lightweight convolutions."""
    feed: int = 256
    """transformer, light: width of the feed-forward network."""
    layers: int = 4
    """Number of layers of the encoder and of the decoder (one more for conv and graph)."""
    dropout: float = 0.3
    """Dropout probability."""
    epochs: int = 20
    """Number of epochs."""
    tokens: int = 1250
    """Maximum number of tokens per batch, including padding."""
    lr: float = 0.002
    """Peak learning rate."""
    warmup: int = 1000
    """Number of steps until the peak."""
    smoothing: float = 0.1
    """Label smoothing."""
    beam: int = 5
    """Number of beams."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("heads", "feed", "layers", "epochs", "tokens", "warmup", "beam"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.units < 50:
            raise ValueError(f"units must be at least 50, not {self.units}")
        if self.width < 2 or self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of twice the heads ({2 * self.heads}), not {self.width}")
        if not (0 <= self.dropout < 1 and 0 <= self.smoothing < 1 and 0 < self.lr < math.inf):
            raise ValueError("dropout and smoothing must be in [0, 1), and lr positive and finite")


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run; if all models are run, light and graph have one seed."""
    models: Any = MODELS if config.model == "all" else (config.model,)
    several = ("conv", "transformer") if config.model == "all" else models
    runs = [(s, m) for s in range(seeds) for m in models if s == 0 or m in several]
    return [replace(config, model=m, seed=config.seed + s) for s, m in runs]


def network(config: Config, vocabulary: int) -> Network:
    """The network of a configuration."""
    return Network(
        config.model, vocabulary, config.width, config.heads, config.feed, config.layers, config.dropout
    )  # fmt: skip


def learning_rate(step: int, config: Config) -> float:
    """The learning rate of a step, counted from 1.

    >>> [learning_rate(s, Config(lr=0.002, warmup=100)) for s in (50, 100, 400)]
    [0.001, 0.002, 0.001]
    """
    return config.lr * min(step / config.warmup, (config.warmup / step) ** 0.5)


def loss_of(model: Network, data: Coded, some: Sequence[int], smoothing: float = 0.0) -> tuple[Tensor, int]:
    """Mean cross-entropy of the next word over some pairs, and the number of words."""
    source, target = (padded([side[i] for i in some]) for side in data)
    before, after = target[:, :-1], target[:, 1:]
    there = after != PAD
    logits = model(source, torch.where(there, before, PAD))
    return F.cross_entropy(logits, after[there], label_smoothing=smoothing), len(logits)


@torch.no_grad()
def validate(model: Network, data: Coded, tokens: int) -> float:
    """Mean cross-entropy per word, in eval mode, without label smoothing."""
    model.eval()
    parts = [loss_of(model, data, some) for some in batches(data, tokens)]
    return sum(loss.item() * count for loss, count in parts) / sum(count for _, count in parts)


def fit(model: Network, train: Coded, val: Coded, config: Config, path: Path | None = None) -> dict[str, Any]:
    """Train, and keep the epoch with the lowest validation loss; with a path, an interrupted run can be resumed.

    Raises: ArithmeticError if the loss becomes NaN or infinite.
    """
    adam = torch.optim.Adam(model.parameters(), config.lr, (0.9, 0.98), 1e-9)
    kept = {name: t.clone() for name, t in model.state_dict().items()}
    curve: dict[str, Any] = {"train_loss": [], "val_loss": [], "seconds": 0.0, "sum": 0.0, "words": 0, "in_epoch": 0}
    saved = common.Checkpoint(path, model=model, optimiser=adam) if path else None
    done, (curve, kept) = saved.restore((curve, kept)) if saved else (0, (curve, kept))
    clock, last = time.perf_counter(), time.monotonic()
    while (epoch := len(curve["val_loss"])) < config.epochs:
        order = batches(train, config.tokens, torch.Generator().manual_seed(config.seed * 100_003 + epoch))
        for number in range(curve["in_epoch"], len(order)):
            done += 1
            model.train()
            for group in adam.param_groups:
                group["lr"] = learning_rate(done, config)
            adam.zero_grad(set_to_none=True)
            loss, words = loss_of(model, train, order[number], config.smoothing)
            loss.backward()
            adam.step()
            if not math.isfinite(value := loss.item()):
                raise ArithmeticError(f"the training loss became {value} in epoch {epoch + 1}: lower the learning rate")
            curve["sum"] += value * words
            curve["words"] += words
            curve["in_epoch"] = number + 1
            if number + 1 == len(order):
                curve["val_loss"].append(validate(model, val, config.tokens))
                curve["train_loss"].append(curve["sum"] / curve["words"])
                curve |= {"sum": 0.0, "words": 0, "in_epoch": 0}
                if curve["val_loss"][-1] == min(curve["val_loss"]):
                    kept = {name: t.clone() for name, t in model.state_dict().items()}
            if number + 1 == len(order) or time.monotonic() - last > SAVED_EVERY:
                curve["seconds"] += time.perf_counter() - clock
                clock, last = time.perf_counter(), time.monotonic()
                share = (epoch + (number + 1) / len(order)) / config.epochs
                whole = number + 1 == len(order)
                said = f", validation {curve['val_loss'][-1]:.3f}" if whole else ""
                progress(share, f"epoch {epoch + 1}/{config.epochs}, loss {value:.3f}{said}", whole)
                if saved:
                    saved.save(done, [curve, kept])
    model.load_state_dict(kept)
    return {
        "val_loss": curve["val_loss"],
        "train_loss": curve["train_loss"],
        "epoch": 1 + curve["val_loss"].index(min(curve["val_loss"])),
        "steps": done,
        "seconds_per_epoch": round(curve["seconds"] / config.epochs, 1),
    }


def bleu(found: Sequence[str], wanted: Sequence[str], lower: bool = False) -> tuple[float, str]:
    """Corpus BLEU by sacrebleu, and its signature.

    >>> score, signature = bleu(["a b c d e"], ["a b c d e"])
    >>> round(score), signature.split("|")[:3]
    (100, ['nrefs:1', 'case:mixed', 'eff:no'])
    """
    from sacrebleu.metrics import BLEU

    metric = BLEU(lowercase=lower)
    score = metric.corpus_score(list(found), [list(wanted)]).score
    return score, str(metric.get_signature())


def samples(source: Sequence[str], found: Sequence[str], wanted: Sequence[str], count: int = 2) -> list[list[str]]:
    """Some sentences with reference and translation: the first ones, and the best and worst ones by chrF."""
    from sacrebleu.metrics import CHRF

    chrf = CHRF()
    order = sorted(range(len(found)), key=lambda i: chrf.sentence_score(found[i], [wanted[i]]).score)
    chosen = [("first", range(len(found))[:count]), ("best", order[::-1][:count]), ("worst", order[:count])]
    return [[kind, source[i], wanted[i], found[i]] for kind, numbers in chosen for i in numbers]


def multiply_adds(model: Network, words: int = 15) -> int:
    """Multiply-adds of one pass over a sentence and its translation of given length, without sparse sums."""
    some = torch.full((1, words), PAD + 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(some, some)
    return counter.get_total_flops() // 2


def run(config: Config, place: Place) -> common.Outcome:
    """Run one network with one seed."""
    data, units = corpus(config.dataset, place.root), units_of(config.dataset, config.units, place.root)
    common.seed_everything(config.seed)
    model = network(config, units.get_vocab_size())
    metrics = fit(model, code(units, data.train), code(units, data.val), config, place.checkpoint)
    metrics |= {f"val_{name}": value for name, value in scores(model, units, data.val, config.beam)[0].items()}
    found, translations = scores(model, units, data.test, config.beam)
    metrics |= {f"test_{name}": value for name, value in found.items()}
    metrics["test_samples"] = samples(*data.test[:1], translations, data.test.target)
    metrics |= {"parameters": sum(p.numel() for p in model.parameters()), "multiply_adds": multiply_adds(model)}
    return common.Outcome(metrics, [repr(layer.spec) for layer in model.modules() if isinstance(layer, GConv)])


def scores(model: Network, units: Tokenizer, pairs: Any, beam: int) -> tuple[dict[str, Any], list[str]]:
    """Cased and uncased BLEU with signatures, and the translations."""
    found = translate(model, units, list(pairs.source), beam)
    (score, signature), (lower, lower_signature) = (bleu(found, pairs.target, lower) for lower in (False, True))
    return {"bleu": score, "signature": signature, "bleu_lower": lower, "signature_lower": lower_signature}, found


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run."""
    data = corpus(config.dataset, root)
    return common.Data(data.label, data.content_hash)


def report(rows: list[common.Row]) -> None:
    """Print one line per network."""
    for model in dict.fromkeys(row["config"]["model"] for row in rows):
        found = [row["metrics"] for row in rows if row["config"]["model"] == model]
        score = mean_std()([m["test_bleu"] for m in found])
        cost = f"{found[0]['parameters']:,} parameters, {found[0]['seconds_per_epoch']:.0f} s an epoch"
        print(f"{model:12s} BLEU {score:18s} {cost}; {found[0]['test_signature']}")


EXPERIMENT = Experiment(
    name="translation",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={
        "dataset": "random",
        "units": 60,
        "width": 16,
        "feed": 16,
        "heads": 2,
        "layers": 2,
        "epochs": 1,
        "tokens": 400,
        "warmup": 10,
        "beam": 2,
    },
    report=report,
    measured=("seconds_per_epoch",),
    tolerance={"test_bleu": 1.0, "val_bleu": 1.0, "val_loss": 0.05, "train_loss": 0.05},
    defaults={"seeds": 3},
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
