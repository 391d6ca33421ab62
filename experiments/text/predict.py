"""Predict the kind of answer that an English question asks for, one of TREC's six kinds.

    python -m experiments.text.predict "who wrote hamlet ?"
    python -m experiments.text.predict "how far is the moon ?" --out words.png
    python -m experiments.text.predict --train                         train the network (minutes), save to runs/

The network is a small version of `kim` in `experiments.text.classify`, trained on TREC's questions. The figure shows
the effect of each word: the decrease of the probability of the class if the word is replaced by an unknown one. A
network consists of two files, NAME.safetensors and NAME.json with its vocabulary.
"""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from datasets.text import TextSet
from experiments.harness import predicting
from experiments.harness.common import RUNS, seed_everything
from experiments.harness.options import command_name
from experiments.harness.outputs import (
    check_network,
    check_not_folder,
    check_output,
    check_size,
    refuse_together,
    whole_file,
)
from experiments.text.classify import Config, OnWords, fit, texts

NAME = "questions"
FORMAT = "gconv text 1"
SMALL = Config(
    "kim", "TREC", width=48, hidden=48, dropout=0.5, lr=2e-3, batch=50, epochs=15, patience=3
)  # fmt: skip
KINDS = {
    "ABBR": "an abbreviation", "DESC": "a description", "ENTY": "a thing", "HUM": "a person", "LOC": "a place",
    "NUM": "a number",
}  # fmt: skip
MOST_WORDS = 100


@dataclass(frozen=True)
class Options:
    """Input and output."""

    text: Annotated[str | None, tyro.conf.Positional] = None
    """A question, in quotation marks."""
    out: Path | None = None
    """Figure to write, .png or .jpg: the effect of each word."""
    checkpoint: Path | None = None
    """Weights of the network; NAME.json must be in the same folder (default: the committed network)."""
    train: bool = False
    """Train the network and write the checkpoint instead of predicting."""
    data_root: Path | None = None
    """For --train: folder of the data sets (default: $GCONV_DATA, else the user's cache folder)."""

    def __post_init__(self) -> None:
        """Check the options."""
        predicting.checked_picture(self.out)
        if self.train:
            refuse_together("--train", {"a question": self.text, "--out": self.out})


SPLIT = re.compile(r"[^\W_]+(?=n't\b)|n't\b|'(?:s|ve|re|d|ll)\b|[^\W_]+|[^\w\s]")
PLAIN = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")  # typographic quotation marks, which TREC does not have
SIGNS = {"?": "\\?", "(": "\\(", ")": "\\)", '"': "``"}


def words_of(text: str) -> tuple[str, ...]:
    """Split a text into words as in TREC's file: lower case, punctuation and endings separated.

    >>> words_of("Who didn't like Hamlet's end?")
    ('who', 'did', "n't", 'like', 'hamlet', "'s", 'end', '\\\\?')
    """
    plain = unicodedata.normalize("NFC", text).translate(PLAIN).lower()
    return tuple(SIGNS.get(word, word) for word in SPLIT.findall(plain))


def known_words(data: TextSet) -> list[str]:
    """The vocabulary: words that occur at least twice in the training documents."""
    train = (data.documents[i] for i in (~data.test).nonzero()[:, 0].tolist())
    counts = Counter(word for document in train for word in document)
    return sorted(word for word, count in counts.items() if count > 1)


def reading(words: Sequence[str], classes: Sequence[str], documents: Sequence[Sequence[str]] = ()) -> TextSet:
    """Documents to be scored, as texts whose training part has exactly this vocabulary."""
    return TextSet(
        label="given", classes=tuple(classes), content_hash="given", source="given",
        documents=((*words, *words), *map(tuple, documents)), labels=torch.zeros(1 + len(documents), dtype=torch.int64),
        test=torch.arange(1 + len(documents)) > 0,
    )  # fmt: skip


def load(path: Path, documents: Sequence[Sequence[str]] = ()) -> tuple[OnWords, list[str], list[str]]:
    """Load a network for some documents, with its vocabulary and classes. Raises: ValueError."""
    command = "python -m experiments.text.predict --train"
    text = predicting.described(path, FORMAT, "a network for texts", command)
    try:
        config = Config(**text["config"])
        words, classes = ([str(v) for v in text[name]] for name in ("words", "classes"))
        if words != sorted(set(words)) or len(classes) < 2:
            raise ValueError("its words are not sorted, or there are no classes")
        data = reading(words, classes, documents)
        check_size(path, lambda: OnWords(config, data))
        model = OnWords(config, data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path.with_suffix('.json')} describes no network of this version ({error})") from None
    return predicting.fitting(path, model), words, classes


def checked(text: str | None, known: Sequence[str]) -> tuple[str, ...]:
    """The words of a text. Raises: ValueError if the network cannot process it, with the reason."""
    text = " ".join((text or "").split())
    said = repr(text if len(text) < 40 else text[:37] + "...")
    if not text:
        raise ValueError("the text is empty; give an English question in quotation marks")
    if len(text) > 100 * MOST_WORDS:
        raise ValueError(f"{said} has {len(text):,} characters; give one question")
    if odd := [c for c in text if c.isalpha() and "LATIN" not in unicodedata.name(c, "")]:
        raise ValueError(f"{said} has the letter {odd[0]!r}, which is not Latin; the network reads English questions")
    words = words_of(text)
    if len(words) > MOST_WORDS:
        raise ValueError(f"{said} has {len(words)} words, at most {MOST_WORDS} are read; give one question")
    if not any(word in known and word[0].isalnum() for word in words):
        raise ValueError(f"{said} has no word that the network knows")
    return words


@torch.no_grad()
def predict(model: OnWords, words: Sequence[str], known: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Class probabilities, and the contribution of each word to the most likely class: (classes,), (words,)."""
    number = {word: i for i, word in enumerate(known, 2)}
    ids = torch.tensor([number.get(word, 1) for word in words])
    without = ids.repeat(len(words) + 1, 1)
    without[1:].fill_diagonal_(1)
    model.words, model.lengths = without, torch.full((len(without),), len(words))
    found = model(torch.arange(len(without))).softmax(1)
    best = int(found[0].argmax())
    return found[0], found[0, best] - found[1:, best]


def learn(options: Options, config: Config = SMALL) -> None:
    """Train the network, print its accuracy on the test questions, and write its files."""
    path = options.checkpoint or RUNS / f"{NAME}.safetensors"
    check_network(path)
    data = texts(config.dataset, options.data_root)
    seed_everything(config.seed)
    model = OnWords(config, data)
    metrics: dict[str, Any] = fit(model, data, config)
    text = {"format": FORMAT, "config": asdict(config), "classes": list(data.classes), "words": known_words(data)}
    predicting.written(model, path, text)
    print(f"wrote {path}: {100 * metrics['test_accuracy']:.1f} % of the test documents of {data.label} are right")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Raises: SystemExit with an error message."""
    options = tyro.cli(Options, prog=command_name(), description=__doc__, args=argv)
    with predicting.one_sentence():
        if options.train:
            learn(options)
            return
        check_output("--out", options.out)
        check_not_folder("--checkpoint", options.checkpoint)
        model, known, classes = load(options.checkpoint or predicting.place(NAME))
        words = checked(options.text, known)
        found, raises = predict(model, words, known)
        names = [KINDS.get(name, name) for name in classes]
        ranked = sorted(zip(found.tolist(), names, strict=True), reverse=True)
        if options.out is not None:
            title = f"{ranked[0][1]}: {100 * ranked[0][0]:.0f} %, of it by each word"
            with whole_file(options.out) as part:
                predicting.bars(part, [word.lstrip("\\") for word in words], raises.tolist(), title)
    for probability, name in ranked[:3]:
        print(f"{name:16s} {100 * probability:5.1f} %")
    unknown = [word for word in words if word not in set(known)]
    if unknown:
        print(f"unknown to the network: {', '.join(unknown)}", file=sys.stderr)


if __name__ == "__main__":
    main()
