"""Figures of analysis results. Each function draws on a given matplotlib axis, or on a new one, and returns it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gconv.analysis.calls import map_of
from gconv.analysis.explicit import matrix
from gconv.analysis.response import Response, frequency_response
from gconv.arguments import checked, kind_of, plural, shown
from gconv.linear import Map

MAX_ENTRIES = 25_000_000  # of a matrix that is drawn
MAX_LINES = 12  # of a frequency response; more pairs of channels are summarised by median and range
BLUE, WHITE, RED = "#6baed6", "#ffffff", "#67001f"  # unequal lightness, so that signs differ in greyscale


def _axis(ax: Any) -> Any:
    if ax is not None:
        if not hasattr(ax, "plot") or isinstance(ax, type | ModuleType):  # such as matplotlib.pyplot
            raise TypeError(f"ax must be a matplotlib axis, but {kind_of(ax)} was given.")
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots()[1]


def _bar(ax: Any, picture: Any, label: str) -> None:
    """Add a labelled colour bar."""
    ax.figure.colorbar(picture, ax=ax, shrink=0.8, label=label)


def _numbers(value: Any, asking: str, ndims: tuple[int, ...], wanted: str) -> Tensor:
    """The tensor in double precision on the CPU; absolute values if it is complex.

    Raises:
        TypeError, ValueError: if it is not a tensor, or has an unexpected number of axes.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{asking} takes {wanted}, but {kind_of(value)} was given.")
    if value.ndim not in ndims:
        raise ValueError(f"{asking} takes {wanted}, but the shape given is {tuple(value.shape)}.")
    value = value.detach().cpu()
    return (value.abs() if value.is_complex() else value).double()


@checked
def plot_matrix(A: Map | Tensor | nn.Module, ax: Any = None, *, domain: Any = None, x: Tensor | None = None) -> Any:
    """The matrix of a map as an image: dark red is positive, light blue negative, white zero; complex: |entries|.

    Args:
        A: a map, a matrix or a layer.
        ax: a matplotlib axis.
        domain, x: for a layer, its Grid or graph, and the signal at which adaptive structure is frozen.

    Returns:
        the axis.

    Raises:
        TypeError: if A is none of these, or the domain of a layer is missing.
        ValueError: if the matrix has more than 25 million entries.

    >>> from gconv.linear import identity
    >>> plot_matrix(identity(3)).get_title()
    'I: 3 x 3'
    """
    if not isinstance(A, Tensor):
        A = map_of(A, "plot_matrix", domain, x)
    if len(A.shape) == 2 and A.shape[0] * A.shape[1] > MAX_ENTRIES:
        raise ValueError(
            f"A matrix of {A.shape[0]} x {A.shape[1]} is too large to draw: use a smaller domain or fewer channels."
        )
    M = _numbers(matrix(A) if isinstance(A, Map) else A, "plot_matrix", (2,), "a map or a matrix (rows, columns)")
    ax = _axis(ax)
    top = float(M.abs().max()) if M.numel() else 1.0
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    signed = LinearSegmentedColormap.from_list("signed", [BLUE, WHITE, RED])
    _bar(ax, ax.imshow(M.numpy(), cmap=signed, vmin=-top, vmax=top, interpolation="nearest"), "entry")
    for side in (ax.xaxis, ax.yaxis):
        side.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    name = str(A) if isinstance(A, Map) else "matrix"
    ax.set(
        xlabel="input (site, channel)", ylabel="output (site, channel)", title=f"{name}: {M.shape[0]} x {M.shape[1]}"
    )
    return ax


@checked
def plot_response(
    response: Response | Map | nn.Module,
    ax: Any = None,
    pairs: list[tuple[int, int]] | None = None,
    *,
    domain: Any = None,
    x: Tensor | None = None,
) -> Any:
    """A frequency response: one line per pair of channels over the eigenvalues, or an image of |gain| in 2-D.

    Low frequencies are on the left for every operator: for an adjacency the axis of eigenvalues is reversed.

    Args:
        response: from `frequency_response`, or a map or layer.
        ax: a matplotlib axis.
        pairs: channels (in, out); default: all (median and range if there are more than 12), in 2-D the first.
        domain, x: for a layer, its Grid or graph, and the signal at which adaptive structure is frozen.

    Returns:
        the axis.

    Raises:
        TypeError: if it is not a response, map or layer, or the domain of a layer is missing.
        ValueError: if the response is three-dimensional, or a pair names a channel that does not exist.

    >>> from gconv.analysis import frequency_response
    >>> from gconv import GConv
    >>> from gconv.operators import cheb
    >>> from gconv.operators.shapes import ring
    >>> len(plot_response(frequency_response(GConv(cheb(2, 3, k=3)), ring())).lines)
    6
    """
    if not isinstance(response, Response):
        response = frequency_response(map_of(response, "plot_response", domain, x))
    gain = response.gain.detach().cpu()
    try:
        given = None if pairs is None else [(int(i), int(o)) for i, o in pairs]
    except (TypeError, ValueError):
        raise TypeError(f"pairs must be channels (in, out), such as [(0, 1)], but it is {shown(pairs)}.") from None
    if any(not (0 <= i < gain.shape[1] and 0 <= o < gain.shape[2]) for i, o in given or []):
        raise ValueError(
            f"The map has {plural(gain.shape[1], 'input channel')} and {plural(gain.shape[2], 'output channel')}, but "
            f"pairs is {given}."
        )
    pairs = given
    if response.frequency.ndim > 1 and response.frequency.shape[1] > 1 and len(response.grid) != 2:
        raise ValueError(
            f"plot_response draws responses on one or two axes of default frequencies, not on a grid {response.grid}."
        )
    ax = _axis(ax)
    if response.frequency.ndim == 1 or response.frequency.shape[1] == 1:
        at = response.frequency.flatten().cpu()
        order = at.argsort()
        where, gain = at[order].numpy(), (gain.abs() if gain.is_complex() else gain)[order]
        every = [(i, o) for i in range(gain.shape[1]) for o in range(gain.shape[2])]
        if pairs is None and len(every) > MAX_LINES:
            lines, every = gain.flatten(1), []
            low, middle, high = (lines.quantile(q, 1).numpy() for q in torch.tensor([0, 0.5, 1], dtype=lines.dtype))
            ax.fill_between(where, low, high, color="0.85", label=f"range of {lines.shape[1]} pairs of channels")
            ax.plot(where, middle, color="0.1", label="median")
        for i, o in pairs or every:
            ax.plot(where, gain[:, i, o].numpy(), marker=".", label=f"{i} -> {o}")
        if response.low == "last":
            ax.set_xlim(*sorted(ax.get_xlim(), reverse=True))
        grid = response.frequency.ndim > 1
        ax.set(xlabel="cycles per site" if grid else "eigenvalue, low frequencies left", ylabel="gain")
        return ax
    ((i, o),) = (pairs or [(0, 0)])[:1]
    picture = gain[:, i, o].abs().unflatten(0, response.grid)
    _bar(ax, ax.imshow(picture.numpy(), extent=(-0.5, 0.5, 0.5, -0.5), vmin=0, interpolation="nearest"), "|gain|")
    ax.set(xlabel="cycles per pixel, across", ylabel="cycles per pixel, down", title=f"|gain|, channel {i} -> {o}")
    return ax


@checked
def plot_spectrum(values: Tensor, ax: Any = None, label: str | None = None) -> Any:
    """Singular values in descending order.

    Args:
        values: (s,) from `singular_values`.
        ax: a matplotlib axis; pass it again to compare.
        label: of the line.

    Returns:
        the axis.

    Raises:
        TypeError, ValueError: if it is not a tensor of this shape.

    >>> import torch
    >>> plot_spectrum(torch.tensor([3.0, 1.0])).lines[0].get_ydata().tolist()
    [3.0, 1.0]
    """
    sorted_values = _numbers(values, "plot_spectrum", (1,), "singular values (s,)").sort(descending=True).values
    ax = _axis(ax)
    ax.plot(range(1, len(values) + 1), sorted_values.numpy(), label=label)
    ax.set(xlabel="index", ylabel="singular value", ylim=(0, None))
    return ax


@checked
def plot_receptive_field(field: Tensor, ax: Any = None, pos: Tensor | None = None, shape: Any = None) -> Any:
    """The receptive field of a site: an image in 2-D, bars in 1-D, coloured nodes if positions are given.

    Args:
        field: (h, w) or (n,), from `effective_receptive_field`, or a row of `receptive_field`.
        ax: a matplotlib axis.
        pos: (n, 2) positions of nodes.
        shape: of the grid, to which a row is reshaped.

    Returns:
        the axis.

    Raises:
        TypeError, ValueError: if it is not a tensor of this shape.

    >>> import torch
    >>> plot_receptive_field(torch.ones(3, 4)).images[0].get_array().shape
    (3, 4)
    """
    seen = _numbers(field, "plot_receptive_field", (1, 2), "a field (n,) or (h, w)")
    if shape is not None:
        try:
            seen = seen.reshape(tuple(shape))
        except (TypeError, RuntimeError):
            raise ValueError(
                f"A field of {plural(seen.numel(), 'site')} does not have the shape {shown(shape)}."
            ) from None
    if pos is not None:
        pos = _numbers(pos, "plot_receptive_field", (2,), "positions pos (n, 2)")
        if pos.shape != (seen.numel(), 2):
            raise ValueError(f"pos must be ({seen.numel()}, 2), one row per node, but its shape is {tuple(pos.shape)}.")
    ax = _axis(ax)
    if pos is not None:
        x, y = pos.mT.numpy()
        picture = ax.scatter(x, y, c=seen.numpy(), cmap="viridis", edgecolors="0.3")
        ax.set_aspect("equal")
        _bar(ax, picture, "influence")
    elif seen.ndim == 2:
        picture = ax.imshow(seen.numpy(), interpolation="nearest")
        _bar(ax, picture, "influence")
    else:
        ax.bar(range(len(seen)), seen.numpy(), color="0.4")
        ax.set(xlabel="site", ylabel="influence")
    return ax


@checked
def plot_energy(energies: Tensor, ax: Any = None, label: str | None = None) -> Any:
    """Dirichlet energy by depth, on a logarithmic axis.

    Args:
        energies: (layers + 1,) from `energy_by_depth`.
        ax: a matplotlib axis; pass it again to compare.
        label: of the line.

    Returns:
        the axis.

    Raises:
        TypeError, ValueError: if it is not a tensor of this shape.

    >>> import torch
    >>> plot_energy(torch.tensor([1.0, 0.1])).get_yscale()
    'log'
    """
    heights = _numbers(energies, "plot_energy", (1,), "energies (layers + 1,)")
    ax = _axis(ax)
    ax.plot(range(len(heights)), heights.numpy(), marker="o", label=label)
    ax.set(xlabel="layers", ylabel="Dirichlet energy", yscale="log")
    return ax
