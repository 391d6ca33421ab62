"""Translate English sentences into German with a trained network.

    python -m experiments.translation.predict "Two dogs run through the snow."
    python -m experiments.translation.predict "A man sleeps." --picture words.png
    python -m experiments.translation.predict --train                train the small network, save to runs/

The small network has 0.4M parameters, in float16, and is trained only on descriptions of pictures. A checkpoint
consists of two files: NAME.safetensors with the weights, and NAME.json with the configuration and the units.
"""

import json
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tokenizers import Tokenizer
from torch import Tensor, nn

from experiments.harness import predicting
from experiments.harness.common import RUNS, Checkpoint, seed_everything
from experiments.harness.options import command_name
from experiments.harness.outputs import (
    check_network,
    check_not_folder,
    check_output,
    check_size,
    refuse_together,
    whole_file,
)
from experiments.translation.corpus import END, START, UNKNOWN, code, corpus, units_of
from experiments.translation.networks import Look, Memory, Network, PlainLook
from experiments.translation.search import translate
from experiments.translation.train import Config, fit, network, scores

FORMAT = "gconv translation 1"
COMMITTED = predicting.FOLDER / "translation.safetensors"
SMALL = Config(
    "conv", units=2000, width=80, layers=2, dropout=0.1, epochs=8, lr=0.003, warmup=500
)  # fmt: skip
MOST_UNITS, MOST_BEAMS = 100, 100


@dataclass(frozen=True)
class Options:
    """Translate English sentences into German."""

    sentences: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """English sentences, in quotation marks."""
    checkpoint: Path | None = None
    """Weights; NAME.json must be in the same folder (default: experiments/checkpoints, else runs)."""
    beam: int = 5
    """Number of beams."""
    picture: Path | None = None
    """PNG file to write: the attention of each German word to the English words, for the first sentence."""
    train: bool = False
    """Train the small network and write the checkpoint instead of translating."""
    data_root: Path | None = None
    """For --train: folder of the data sets (default: $GCONV_DATA, else the user's cache folder)."""
    small: Annotated[Config, tyro.conf.Suppress] = field(default_factory=lambda: SMALL)

    def __post_init__(self) -> None:
        """Check the options."""
        if self.picture is not None and self.picture.suffix.lower() != ".png":
            raise ValueError(f"--picture must end in .png, and {self.picture} does not")
        if self.train:
            refuse_together("--train", {"sentences": self.sentences, "--picture": self.picture})


def save(model: Network, units: Tokenizer, config: Config, path: Path, **about: Any) -> None:
    """Write a checkpoint with weights in float16."""
    text = {"format": FORMAT, "config": asdict(config), "about": about, "units": json.loads(units.to_str())}
    predicting.written(model, path, text)


def load(path: Path) -> tuple[Network, Tokenizer]:
    """Load network and units from a checkpoint. Raises: ValueError for other files."""
    command = "python -m experiments.translation.predict --train"
    text = predicting.described(path, FORMAT, "a translation network", command)
    try:
        config, units = Config(**text["config"]), Tokenizer.from_str(json.dumps(text["units"]))
        check_size(path, lambda: network(config, units.get_vocab_size()))
        model = network(config, units.get_vocab_size())
    except Exception as error:  # tokenizers raises plain Exception
        said = str(error).splitlines()[0]
        raise ValueError(f"{path.with_suffix('.json')} describes no network of this version ({said})") from None
    return predicting.fitting(path, model), units


def check(sentence: str, units: Tokenizer) -> str:
    """Check and return a sentence. Raises: ValueError if it cannot be translated, with the reason."""
    text = " ".join(sentence.split())
    said = repr(text if len(text) < 40 else text[:37] + "...")
    if not text:
        raise ValueError("the sentence is empty; give an English one in quotation marks")
    if len(text) > 100 * MOST_UNITS:
        raise ValueError(f"{said} has {len(text):,} characters; give one sentence at a time")
    if odd := [c for c in text if c.isalpha() and "LATIN" not in unicodedata.name(c, "")]:
        raise ValueError(f"{said} has the letter {odd[0]!r}, which is not Latin; the network translates from English")
    ids = units.encode(text).ids
    if len(ids) > MOST_UNITS:
        raise ValueError(f"{said} has {len(ids)} units, and the network reads at most {MOST_UNITS}; give one sentence")
    known = [units.decode([i]) for i in ids if i != UNKNOWN]
    if not any(c.isalpha() for token in known for c in token):
        raise ValueError(f"{said} has no word that the network knows")
    return text


@torch.no_grad()
def alignment(model: Network, source: Tensor, target: Tensor) -> Tensor:
    """Attention of each target unit to each source unit, mean over layers and heads: (m, n)."""
    found: list[Tensor] = []

    def seen(look: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        x, memory = inputs[0], inputs[1]
        assert isinstance(memory, Memory) and isinstance(look, Look | PlainLook)
        keys = look.read(memory.keys).chunk(2, -1)[0] if isinstance(look, Look) else memory.keys
        q, k = (t.unflatten(-1, (getattr(look, "heads", 1), -1)).transpose(1, 2) for t in (look.ask(x), keys))
        found.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1)[0])

    hooks = [m.register_forward_hook(seen) for m in model.modules() if isinstance(m, Look | PlainLook)]
    try:
        model.decode(target[None], model.encode(source[None]))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found).mean(0)


def draw(model: Network, units: Tokenizer, sentence: str, translation: str, path: Path) -> None:
    """Draw the alignment."""
    from matplotlib.figure import Figure

    source, target = (units.encode(text) for text in (sentence, translation))
    # each unit is predicted at the position of the previous one
    weights = alignment(model, torch.tensor([*source.ids, END]), torch.tensor([START, *target.ids]))
    canvas = Figure(figsize=(1 + 0.4 * len(source.ids), 1 + 0.4 * len(target.ids)), layout="constrained")
    axes = canvas.subplots()
    axes.imshow(weights.numpy(), cmap="Greys", vmin=0)
    axes.set_xticks(range(len(source.ids) + 1), [*source.tokens, "end"], rotation=60, ha="right")
    axes.set_yticks(range(len(target.ids) + 1), [*target.tokens, "end"])
    canvas.savefig(path, format="png", dpi=120)


def train(options: Options) -> None:
    """Train the small network, print its BLEU on the validation pairs, and write the checkpoint."""
    config = options.small
    path = options.checkpoint or RUNS / COMMITTED.name
    check_network(path)
    data, units = corpus(config.dataset, options.data_root), units_of(config.dataset, config.units, options.data_root)
    seed_everything(config.seed)
    model = network(config, units.get_vocab_size())
    resume = path.with_suffix(".resume.pt")
    Checkpoint.begin({"data": data.content_hash, "config": asdict(config)})
    fit(model, code(units, data.train), code(units, data.val), config, resume)
    found, _ = scores(model.half().float(), units, data.val, config.beam)
    save(model, units, config, path, data=data.label, val_bleu=round(found["bleu"], 2))
    resume.unlink(missing_ok=True)
    print(f"wrote {path}: BLEU {found['bleu']:.1f} on the validation pairs ({found['signature']})")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Raises: SystemExit with an error message."""
    options = tyro.cli(Options, prog=command_name(), description=__doc__, args=argv)
    if not 1 <= options.beam <= MOST_BEAMS:
        sys.exit(f"error: --beam must be at least 1 and at most {MOST_BEAMS}, not {options.beam}")
    with predicting.one_sentence():
        if options.train:
            train(options)
            return
        if not options.sentences:
            raise ValueError("give an English sentence in quotation marks")
        check_output("--picture", options.picture)
        check_not_folder("--checkpoint", options.checkpoint)
        model, units = load(options.checkpoint or predicting.place("translation"))
        sentences = [check(sentence, units) for sentence in options.sentences]
        found = translate(model, units, sentences, options.beam)
        if options.picture is not None:
            with whole_file(options.picture) as part:
                draw(model, units, sentences[0], found[0], part)
    print("\n".join(found))


if __name__ == "__main__":
    main()
