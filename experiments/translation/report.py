"""Table and figure of `experiments.translation.train`."""

from collections.abc import Sequence

from experiments.harness.common import Row
from experiments.harness.render import Figure, Published, Table, lines, mean_std, several
from experiments.translation.networks import MODELS
from experiments.translation.train import Config, expand

PROTOCOL = (
    "test2016, 2,568,192 parameters with 9,712 units, at most 8,000 updates of 8,192 tokens, beam 5; BLEU on tokenised "
    "text"
)
PUBLISHED = (Published("transformer", "BLEU", 41.02, None, "LividWo/Revisit-MMT", "read in source", PROTOCOL, False),)


def remarks(rows: Sequence[Row]) -> list[str]:
    """Sentences on missing runs, the BLEU signature, and some translations of the first network with rows."""
    runs, there = [(c.model, c.seed) for c in expand(Config(), 3)], {(r["config"]["model"], r["seed"]) for r in rows}
    short = {m: sum(model == m and (model, seed) not in there for model, seed in runs) for m in MODELS}
    missing = ", ".join(f"{model} ({count})" for model, count in short.items() if count)
    found = [f"Runs of the protocol that have no row yet: {missing}."] if missing else []
    if rows:
        found.append(f"Signature: `{rows[0]['metrics']['test_signature']}`; lower case: `case:lc`.")
    for row in rows[:1]:
        said = [f"Translations of `{row['config']['model']}`, seed {row['seed']}, the best and worst by chrF:", ""]
        for kind, source, wanted, got in row["metrics"]["test_samples"]:
            said += [f"- {kind}: {source} → *{got}* (reference: {wanted})"]
        found.append("\n".join(said))
    return found


TABLE = Table(
    name="translation",
    experiment="translation",
    label="config.model",
    labels=MODELS,
    cells=several(
        **{"BLEU": "metrics.test_bleu", "lower case": "metrics.test_bleu_lower", "validation": "metrics.val_bleu"}
    ),
    format=mean_std(),
    scale=1.0,
    words=(("parameters", "metrics.parameters"), ("multiply-adds", "metrics.multiply_adds")),
    caption=(
        "Multi30k, English to German, test2016: BLEU by sacrebleu (13a) on the raw text with 5 beams, at the epoch of"
        " 20 with the lowest validation loss, with the number of seeds; only the layers differ. Multiply-adds: a pass"
        " over a sentence of 15 units and its translation. The published number cannot be compared directly: it has "
        "about as many updates, but with seven times the tokens in each, and its BLEU is that of tokenised text (the "
        "same output has been scored 27.5 by sacrebleu and 29.0 by another script). No published number of a "
        "convolutional network was found."
    ),
    command="python -m experiments.sweep translation",
    published=PUBLISHED,
    remarks=remarks,
)

FIGURE = Figure(
    name="translation",
    experiment="translation",
    draw=lines("config.model", "metrics.val_loss", 1.0),
    title="Multi30k, English to German: cross-entropy per unit on the validation pairs",
)
