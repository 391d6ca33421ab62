"""Sentence pairs, subword units by byte pair encoding, and batches of sentences of similar length."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from datasets.multi30k import Pairs, TranslationSet, load_multi30k

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
PAD, START, END, UNKNOWN = range(4)


@lru_cache(maxsize=2)
def corpus(dataset: str, root: Path | None = None) -> TranslationSet:
    """The sentences, loaded once per process. Raises: DataUnavailable, DataCorrupt."""
    if dataset == "multi30k":
        return load_multi30k(root)
    generator = np.random.default_rng(0)
    words = [consonant + vowel for consonant in "bdfgk" for vowel in "aiu"]
    sources = [list(generator.choice(words, generator.integers(3, 7))) for _ in range(180)]
    # an artificial language: words in reverse order, each spelled backwards
    pairs = [(" ".join(s) + ".", " ".join(w[::-1] for w in s[::-1]) + ".") for s in sources]
    train, val, test = (Pairs(*zip(*part, strict=True)) for part in (pairs[:160], pairs[160:170], pairs[170:]))
    return TranslationSet(label="generated language", classes=("a", "b"), content_hash="generated", source="generated",
                          train=train, val=val, test=test)  # fmt: skip


def learn_units(sentences: Iterable[str], size: int) -> Tokenizer:
    """Byte pair encoding with a maximum number of units. "▁" marks the start of a word; punctuation is separate.

    >>> units = learn_units(["a dog, a dog", "dogs"], 16)
    >>> units.encode("a dog, dogs").tokens, units.decode(units.encode("a dog, dogs").ids)
    (['▁a', '▁dog', ',', '▁dogs'], 'a dog, dogs')
    """
    units = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
    units.normalizer = normalizers.NFKC()
    units.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    units.decoder = decoders.Metaspace()
    units.train_from_iterator(
        sentences, trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
    )
    return units


@lru_cache(maxsize=2)
def units_of(dataset: str, size: int, root: Path | None = None) -> Tokenizer:
    """The joint units of both languages, learned from the training pairs, once per process."""
    train = corpus(dataset, root).train
    return learn_units((*train.source, *train.target), size)


class Coded(NamedTuple):
    """Pairs as unit indices: each source ends with END; each target starts with START and ends with END."""

    source: list[Tensor]
    target: list[Tensor]


def code(units: Tokenizer, pairs: Pairs) -> Coded:
    """Encode pairs."""
    source, target = (units.encode_batch(list(side)) for side in pairs)
    return Coded(
        [torch.tensor([*one.ids, END]) for one in source], [torch.tensor([START, *one.ids, END]) for one in target]
    )


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Rows of different lengths as one tensor, padded with PAD at the end."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=PAD)


def batches(data: Coded, tokens: int, generator: torch.Generator | None = None) -> list[list[int]]:
    """Batches of indices of pairs of similar length, with a maximum number of tokens including padding.

    A single longer pair forms a batch. With a generator, pairs of equal lengths and batches are shuffled.

    >>> some = [torch.zeros(n) for n in (2, 9, 3, 2)]
    >>> batches(Coded(some, some), 9)
    [[0, 3, 2], [1]]
    """
    count = len(data.source)
    order = list(range(count)) if generator is None else torch.randperm(count, generator=generator).tolist()
    order.sort(key=lambda i: (len(data.target[i]), len(data.source[i])))
    found: list[list[int]] = []
    longest = 0
    for i in order:
        length = max(len(data.source[i]), len(data.target[i]))
        longest = max(longest, length)
        if not found or longest * (len(found[-1]) + 1) > tokens:
            found.append([])
            longest = length
        found[-1].append(i)
    if generator is None:
        return found
    return [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]
