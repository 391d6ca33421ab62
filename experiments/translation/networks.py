"""Four encoder-decoders whose layers differ only in how the positions of a sentence are mixed.

    conv         gated convolutions (ConvS2S): Y = GLU(sum_k S_k X W_k + b); causal in the decoder
    transformer  self-attention and a feed-forward network on each position
    light        lightweight convolutions: depthwise, with the taps of a head positive and summing to 1; feed-forward
    graph        `conv` with a graph convolution as its encoder: neighbours, and skip edges to more distant words

Layers are pre-norm with skip connections. All decoders attend to the output of the encoder; all networks have the same
sinusoidal positional encodings and one embedding for both languages and the output.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from experiments.translation.corpus import PAD
from gconv import GConv, Graph
from gconv.mixing import Dense
from gconv.operators import conv1d, depthwise, pointwise, relational

MODELS = ("conv", "transformer", "light", "graph")
SKIPS = (2, 4, 8)
State = list[tuple[Tensor, ...]]


class Sentences(NamedTuple):
    """Information on a batch of sentences: a mask of words (b, n), and their graph."""

    there: Tensor
    graph: Graph | None = None


class Memory(NamedTuple):
    """The output of the encoder: keys and values (b, n, d), and a mask of words (b, n)."""

    keys: Tensor
    values: Tensor
    there: Tensor

    def repeated(self, times: int) -> "Memory":
        """Repeat each sentence a number of times."""
        return Memory(*(t.repeat_interleave(times, 0) for t in self))


def sentence_graph(lengths: Tensor, skips: tuple[int, ...] = SKIPS) -> Graph:
    """The disjoint union of sentences: edges from the previous and next words (types 0 and 1), and skip edges from
    more distant words before and after (types 2 and 3).

    >>> g = sentence_graph(torch.tensor([3, 1]), (2,))
    >>> list(zip(*g.edge_index.tolist(), g.edge_type.tolist()))
    [(0, 1, 0), (1, 2, 0), (1, 0, 1), (2, 1, 1), (0, 2, 2), (2, 0, 3)]
    """
    place = torch.cat([torch.arange(n) for n in lengths.tolist()])
    edges, types = [], []
    for distance, kind in ((1, 0), *((skip, 2) for skip in skips)):
        target = (place >= distance).nonzero()[:, 0]
        ahead = torch.stack([target - distance, target])
        edges += [ahead, ahead.flip(0)]
        types += [torch.full((len(target),), kind), torch.full((len(target),), kind + 1)]
    return Graph(torch.cat(edges, 1), len(place), edge_type=torch.cat(types))


def positions(start: int, length: int, width: int) -> Tensor:
    """Sines and cosines of the positions start .. start + length - 1: (length, width)."""
    place = torch.arange(start, start + length)[:, None]
    angle = place * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


# -- mixing along a sentence: (x (b, n, d), sentences, state of the past) -> (y (b, n, d), new state) -------


class Gated(nn.Module):
    """Y = GLU(conv(X)), of all surrounding words or, if causal, of the previous ones."""

    def __init__(self, width: int, kernel: int, causal: bool):
        super().__init__()
        pads = (kernel - 1, 0) if causal else (kernel // 2, kernel // 2)
        self.conv, self.kernel = GConv(conv1d(width, 2 * width, kernel, padding=(pads,))), kernel

    def forward(self, x: Tensor, sentences: Sentences | None, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Apply the layer; a causal layer returns the words that its next call needs."""
        y, kept = _along(self.conv, x, self.kernel, sentences, past)
        return F.glu(y, -1), kept


def _along(
    conv: GConv, x: Tensor, kernel: int, sentences: Sentences | None, past: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A convolution along the words that ignores positions after the end of a sentence and, if causal, future words."""
    n = x.shape[1]
    if sentences is not None:
        x = x * sentences.there[..., None]
    elif past is not None:
        x = torch.cat([past, x], 1)
    # im2col is up to 1.5 times faster on sentences than the planned lowering, forward and backward together
    y = conv(x.mT, lowering="im2col" if isinstance(conv.spec.mixing, Dense) else None)
    return y.mT[:, -n:], x[:, max(0, x.shape[1] - kernel + 1) :]


class SelfAttention(nn.Module):
    """Scaled dot-product attention with several heads."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor, sentences: Sentences | None, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Apply the layer; a causal layer returns keys and values for its next call."""
        q, *kv = self.read(x).chunk(3, -1)
        kept = torch.cat(kv, -1)
        if past is not None:
            kept = torch.cat([past, kept], 1)
        k, v = kept.chunk(2, -1)
        there = None if sentences is None else sentences.there
        return self.write(_attend(q, k, v, self.heads, there, self.causal and past is None)), kept


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, there: Tensor | None, causal: bool = False) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    mask = None if there is None else there[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal).transpose(1, 2).flatten(2)


class SharedSoftmax(nn.Module):
    """Parameters (taps, heads) -> a depthwise weight with positive taps that sum to 1, shared by channels of a head.

    A parametrisation of the weight of a `depthwise` layer.
    """

    def __init__(self, heads: int):
        super().__init__()
        self.heads = heads

    def forward(self, raw: Tensor) -> Tensor:
        """(taps, heads, 1, 1) -> (taps, channels, 1, 1)."""
        return raw.softmax(0).repeat_interleave(self.each, 1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Initial parameters, with nearly equal taps."""
        self.each = weight.shape[1] // self.heads
        return weight[:, :: self.each]


class Light(nn.Module):
    """Wu et al. 2019: gate, depthwise convolution with `SharedSoftmax`, linear."""

    def __init__(self, width: int, kernel: int, heads: int, causal: bool):
        super().__init__()
        pads = (kernel - 1, 0) if causal else (kernel // 2, kernel // 2)
        self.read, self.write = GConv(pointwise(width, 2 * width, ndim=1)), GConv(pointwise(width, width, ndim=1))
        self.conv, self.kernel = GConv(depthwise(width, kernel, padding=(pads,), bias=False, ndim=1)), kernel
        register_parametrization(self.conv, "weight", SharedSoftmax(heads))

    def forward(self, x: Tensor, sentences: Sentences | None, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Apply the layer; a causal layer returns the words that its next call needs."""
        y, kept = _along(self.conv, F.glu(self.read(x.mT).mT, -1), self.kernel, sentences, past)
        return self.write(y.mT).mT, kept


class OnGraph(nn.Module):
    """Y = GLU(sum over edge types r of the mean over edges of type r, times W_r, + X W + b), on all words at once."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = GConv(relational(width, 2 * width, num_relations=4))

    def forward(self, x: Tensor, sentences: Sentences | None, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Apply the layer; only for encoders."""
        assert sentences is not None and sentences.graph is not None
        y = F.glu(self.conv(x[sentences.there], sentences.graph), -1)
        return x.new_zeros(x.shape).masked_scatter(sentences.there[..., None], y), x[:, :0]


# -- attention to the encoder's output --------------------------------------------------------------------------------


class Look(nn.Module):
    """Attention with several heads; keys and values are computed once per sentence by separate matrices."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ask, self.write, self.heads = nn.Linear(width, width), nn.Linear(width, width), heads
        self.read = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, memory: Memory, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """(b, m, d) -> (b, m, d)."""
        kept = self.read(memory.keys) if past is None else past
        keys, values = kept.chunk(2, -1)
        return self.write(_attend(self.ask(x), keys, values, self.heads, memory.there)), kept


class PlainLook(nn.Module):
    """ConvS2S attention: one head; keys are the encoder's output, and values include the word embeddings."""

    def __init__(self, width: int):
        super().__init__()
        self.ask, self.write = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Memory, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """(b, m, d) -> (b, m, d)."""
        return self.write(_attend(self.ask(x), memory.keys, memory.values, 1, memory.there)), x[:, :0]


# -- networks ---------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Mixing along the sentence, attention to the source in a decoder, optionally a feed-forward network."""

    def __init__(self, width: int, mix: nn.Module, look: nn.Module | None, feed: int, dropout: float):
        super().__init__()
        self.mix, self.look, self.drop = mix, look, nn.Dropout(dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(1 + (look is not None) + (feed > 0)))
        self.feed = None
        if feed:
            self.feed = nn.Sequential(nn.Linear(width, feed), nn.ReLU(), nn.Dropout(dropout), nn.Linear(feed, width))

    def forward(
        self, x: Tensor, sentences: Sentences | None, memory: Memory | None = None, past: tuple[Any, ...] = (None, None)
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(b, n, d) -> (b, n, d), and the state of a decoder layer for the next word."""
        norms = iter(self.norms)
        y, kept = self.mix(next(norms)(x), sentences, past[0])
        x, keep = x + self.drop(y), [kept]
        if self.look is not None:
            y, seen = self.look(next(norms)(x), memory, past[1])
            x = x + self.drop(y)
            keep.append(seen)
        if self.feed is not None:
            x = x + self.drop(self.feed(next(norms)(x)))
        return x, tuple(keep)


class Network(nn.Module):
    """Encoder and decoder of a model.

    Args:
        model: one of `MODELS`.
        vocabulary: number of units.
        width, heads, feed: channels, heads of attention and of lightweight convolutions, feed-forward width.
        layers: number of encoder layers; the decoder of conv and graph has one more.
        skips: distances of the graph's skip edges.
    """

    def __init__(
        self, model: str, vocabulary: int, width: int = 128, heads: int = 4, feed: int = 256, layers: int = 4,
        dropout: float = 0.3, skips: tuple[int, ...] = SKIPS,
    ):  # fmt: skip
        super().__init__()
        gated = model in ("conv", "graph")

        def layer(number: int, causal: bool) -> Layer:
            mix: nn.Module
            if model == "graph" and not causal:
                mix = OnGraph(width)
            elif gated:
                mix = Gated(width, 3 if causal else 5, causal)
            elif model == "light":
                mix = Light(width, min(3 + 2 * number, 9), heads, causal)
            else:
                mix = SelfAttention(width, heads, causal)
            look = (PlainLook(width) if gated else Look(width, heads)) if causal else None
            return Layer(width, mix, look, 0 if gated else feed, dropout)

        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        with torch.no_grad():
            self.embedding.weight[PAD] = 0
        self.encoder = nn.ModuleList(layer(i, False) for i in range(layers))
        self.decoder = nn.ModuleList(layer(i, True) for i in range(layers + gated))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.drop, self.skips, self.scale = nn.Dropout(dropout), skips if model == "graph" else (), width**0.5

    def embed(self, words: Tensor, start: int = 0) -> Tensor:
        """(b, n) -> (b, n, d), with the first word at position `start`."""
        x = self.embedding(words) * self.scale
        return self.drop(x + positions(start, words.shape[1], x.shape[-1]).to(x))

    def encode(self, source: Tensor) -> Memory:
        """(b, n) -> the output of the encoder, to which the decoder attends."""
        there = source != PAD
        sentences = Sentences(there, sentence_graph(there.sum(1), self.skips) if self.skips else None)
        x = first = self.embed(source)
        for layer in self.encoder:
            x, _ = layer(x, sentences)
        x = self.norms[0](x)
        return Memory(x, (x + first) * 0.5**0.5, there)

    def decode(
        self, target: Tensor, memory: Memory, state: State | None = None, start: int = 0
    ) -> tuple[Tensor, State]:
        """(b, m) -> (b, m, d), from which the next word is predicted; with a state, only for new words."""
        x, kept = self.embed(target, start), []
        for number, layer in enumerate(self.decoder):
            x, keep = layer(x, None, memory, (None, None) if state is None else state[number])
            kept.append(keep)
        return self.norms[1](x), kept

    def logits(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., vocabulary)."""
        return F.linear(x, self.embedding.weight)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits of the next word after each target word: (words, vocabulary), row by row."""
        x, _ = self.decode(target, self.encode(source))
        return self.logits(x[target != PAD])
