"""Beam search over a batch of sentences, one word per step."""

import torch
from tokenizers import Tokenizer
from torch import Tensor

from experiments.translation.corpus import END, PAD, START, UNKNOWN, padded
from experiments.translation.networks import Network


@torch.no_grad()
def beam_search(network: Network, source: Tensor, beam: int = 5, most: int | None = None) -> list[list[int]]:
    """The best translation of each sentence.

    The `beam` most probable prefixes of each sentence are kept. Finished ones are removed, and a sentence is done when
    `beam` of them have finished; the one with the highest log-probability / number of words (including END) is chosen.
    Translations have at most `most` words, by default ten plus twice the number of source words. Results do not depend
    on the other sentences of the batch.

    Shapes: source (b, n), each row with END and then PAD.
    """
    b, lengths = len(source), (source != PAD).sum(1)
    limit = 2 * lengths + 10 if most is None else torch.full_like(lengths, most)
    memory = network.encode(source).repeated(beam)
    words = torch.full((b, beam, 1), START)
    score = torch.full((b, beam), -torch.inf)
    score[:, 0] = 0  # initially all beams are equal
    ended = torch.full((b, beam, int(limit.max()) + 1), PAD)
    ended_score = torch.full((b, beam), -torch.inf)
    first, state = torch.arange(b)[:, None], None
    for length in range(1, ended.shape[2]):
        x, state = network.decode(words[..., -1].reshape(-1, 1), memory, state, length - 1)
        step = network.logits(x[:, -1]).log_softmax(-1).view(b, beam, -1)
        step[..., [PAD, START, UNKNOWN]] = -torch.inf
        over = length >= limit
        step[over, :, :END] = step[over, :, END + 1 :] = -torch.inf
        total, flat = (score[..., None] + step).flatten(1).topk(2 * beam, 1)
        origin, word = flat // step.shape[-1], flat % step.shape[-1]
        grown = torch.cat([words[first, origin], word[..., None]], 2)

        ends = word == END
        done = ended_score.isfinite().all(1, keepdim=True)
        found = torch.where(ends & ~done, total / length, -torch.inf)[:, :beam]
        ended_score, best = torch.cat([ended_score, found], 1).topk(beam, 1)
        longer = torch.nn.functional.pad(grown[:, :beam], (0, ended.shape[2] - length - 1), value=PAD)
        ended = torch.cat([ended, longer], 1)[first, best]
        if ended_score.isfinite().all():
            break

        score, pick = total.masked_fill(ends, -torch.inf).topk(beam, 1)
        words = grown[first, pick]
        index = (first * beam + origin.gather(1, pick)).flatten()
        state = [tuple(part[index] for part in layer) for layer in state]
    best_of = ended[first[:, 0], ended_score.argmax(1)]
    return [[w for w in row if w not in (PAD, START, END)] for row in best_of.tolist()]


def translate(network: Network, units: Tokenizer, sentences: list[str], beam: int = 5, batch: int = 50) -> list[str]:
    """Translations of sentences, in eval mode."""
    network.eval()
    coded = [torch.tensor([*one.ids, END]) for one in units.encode_batch(sentences)]
    order = sorted(range(len(coded)), key=lambda i: len(coded[i]))
    found = [""] * len(coded)
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        rows = beam_search(network, padded([coded[i] for i in some]), beam)
        for i, text in zip(some, units.decode_batch(rows), strict=True):
            found[i] = text.strip()
    return found
