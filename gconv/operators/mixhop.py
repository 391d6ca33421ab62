"""Concatenated powers of the adjacency."""

from __future__ import annotations

from typing import Any

from gconv.basis import Recurrence
from gconv.mixing import Heads
from gconv.operators.polynomial import MAX_STEPS, Powers, at_most
from gconv.operators.shapes import messy, ring, weighted
from gconv.spec import Parts, Sample, register


def chosen(powers: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """The rows of the identity that select these powers from the list of all powers up to the largest."""
    return tuple(tuple(float(t == p) for t in range(max(powers) + 1)) for p in powers)


def read_powers(name: str, powers: Any, least: int = 0) -> tuple[int, ...]:
    """A tuple of distinct powers, after validation.

    Raises:
        ValueError: if there are none, two are equal, or one is not an integer from `least` to MAX_STEPS.
    """
    given = tuple(powers) if isinstance(powers, (tuple, list)) else ()
    whole = all(isinstance(p, int) and not isinstance(p, bool) and p >= least for p in given)
    if not given or not whole or len(set(given)) < len(given):
        raise ValueError(f"{name} must be one or more distinct integers >= {least}, but it is {powers!r}.")
    at_most(f"A power in {name}", max(given), MAX_STEPS)
    return given


@register(
    samples=lambda mixhop: [
        Sample(mixhop(3, 2), weighted, 3),
        Sample(mixhop(2, 3, powers=(3, 1)), messy, 2),
        Sample(mixhop(2, 2, powers=(0, 2), add_self_loops=False, bias=False), messy, 2),
        Sample(mixhop(2, 1, powers=(0,)), ring, 2),
    ],
    citation="Abu-El-Haija et al., MixHop: Higher-Order Graph Convolutional Architectures via Sparsified Neighborhood "
    "Mixing, ICML 2019",
    init="glorot",
)
def mixhop(
    in_channels: int,
    out_channels: int,
    powers: tuple[int, ...] = (0, 1, 2),
    add_self_loops: bool = True,
    bias: bool = True,
) -> Parts:
    """MixHop: several powers of the adjacency, each with its own output channels.

    Equation: Y = [S^p X W_p for p in powers] + b, concatenated, with S = D^-1/2 (A + I) D^-1/2.

    Meaning: since the powers stay separate, the next layer can compute differences between neighbourhoods of different
    sizes, which a sum of powers cannot represent.

    In the family: one tap per power of gcn's S, by repeated products; W by heads: each tap writes its own block.

    Traps: blocks are in the order of `powers`, as in PyG. PyG accepts a repeated power, with one matrix for both; here
    it is an error.

    Args: PyG's MixHopConv's. out_channels: of each block.

    Shapes: x (*b, n, i) -> (*b, n, len(powers) o).

    Raises:
        ValueError: if powers are not distinct integers >= 0.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(mixhop(3, 2, powers=(0, 1, 3)))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 6])
    """
    powers = read_powers("powers", powers)
    matrix: Any = "adjacency+loops" if add_self_loops else "adjacency"
    structure = Powers(Recurrence.monomial(max(powers) + 1), matrix, combine=chosen(powers))
    return structure, Heads(len(powers), in_channels, out_channels), bias
