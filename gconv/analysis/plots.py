"""Pictures of the answers. Each takes an axis (or makes one), draws on it and returns it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gconv.analysis.explicit import matrix
from gconv.analysis.response import Response
from gconv.linear import Map


def _axis(ax: Any) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots()[1]


def plot_matrix(A: Map | Tensor, ax: Any = None) -> Any:
    """The matrix of a map as a picture: red above, blue below zero, white at zero.

    Args:
        A: a map or a matrix.
        ax: a matplotlib axis.

    Returns:
        the axis.

    >>> from gconv.linear import identity
    >>> plot_matrix(identity(3)).get_title()
    'I: 3 x 3'
    """
    ax = _axis(ax)
    M = (matrix(A) if isinstance(A, Map) else A).detach().cpu().double()
    top = float(M.abs().max()) if M.numel() else 1.0
    ax.imshow(M.numpy(), cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
    name = str(A) if isinstance(A, Map) else "matrix"
    ax.set(
        xlabel="input (site, channel)", ylabel="output (site, channel)", title=f"{name}: {M.shape[0]} x {M.shape[1]}"
    )
    return ax


def plot_response(response: Response, ax: Any = None, pairs: list[tuple[int, int]] | None = None) -> Any:
    """A frequency response: one line a pair of channels over eigenvalues, or |gain| over the frequencies of a plane.

    Args:
        response: of `frequency_response`.
        ax: a matplotlib axis.
        pairs: channels (in, out); default all, on planes the first.

    Returns:
        the axis.

    Raises:
        ValueError: if the response is that of a volume.

    >>> from gconv.analysis import frequency_response
    >>> from gconv import GConv
    >>> from gconv.operators import cheb
    >>> from gconv.operators.shapes import ring
    >>> len(plot_response(frequency_response(GConv(cheb(2, 3, k=3)), ring())).lines)
    6
    """
    ax = _axis(ax)
    gain = response.gain.detach().cpu()
    if response.frequency.ndim == 1 or response.frequency.shape[1] == 1:
        at = response.frequency.flatten().cpu()
        order = at.argsort()
        for i, o in pairs or [(i, o) for i in range(gain.shape[1]) for o in range(gain.shape[2])]:
            line = gain[:, i, o].abs() if gain.is_complex() else gain[:, i, o]
            ax.plot(at[order].numpy(), line[order].numpy(), label=f"{i} -> {o}")
        ax.set(xlabel="frequency" if response.frequency.ndim > 1 else "eigenvalue", ylabel="gain")
        return ax
    if len(response.grid) != 2:
        raise ValueError(f"A picture shows the frequencies of a line or a plane, not of a grid {response.grid}.")
    ((i, o),) = (pairs or [(0, 0)])[:1]
    picture = gain[:, i, o].abs().unflatten(0, response.grid)
    ax.imshow(picture.numpy(), extent=(-0.5, 0.5, 0.5, -0.5), interpolation="nearest")
    ax.set(xlabel="cycles a pixel, across", ylabel="cycles a pixel, down", title=f"|gain|, channel {i} -> {o}")
    return ax


def plot_spectrum(values: Tensor, ax: Any = None, label: str | None = None) -> Any:
    """Singular values in descending order.

    Args:
        values: of `singular_values`.
        ax: a matplotlib axis; call again with it to compare.
        label: of the line.

    Returns:
        the axis.

    >>> import torch
    >>> plot_spectrum(torch.tensor([3.0, 1.0])).lines[0].get_ydata().tolist()
    [3.0, 1.0]
    """
    ax = _axis(ax)
    sorted_values = values.detach().cpu().sort(descending=True).values
    ax.plot(range(1, len(values) + 1), sorted_values.numpy(), label=label)
    ax.set(xlabel="number", ylabel="singular value", ylim=(0, None))
    return ax


def plot_receptive_field(field: Tensor, ax: Any = None, pos: Tensor | None = None, shape: Any = None) -> Any:
    """What a site sees: a picture on a plane, bars on a line, coloured nodes where positions are given.

    Args:
        field: (h, w) or (n,), of `effective_receptive_field`, or a row of `receptive_field`.
        ax: a matplotlib axis.
        pos: (n, 2) positions of nodes.
        shape: the grid that a row unfolds to.

    Returns:
        the axis.

    >>> import torch
    >>> plot_receptive_field(torch.ones(3, 4)).images[0].get_array().shape
    (3, 4)
    """
    ax = _axis(ax)
    seen = field.detach().cpu().double()
    seen = seen if shape is None else seen.reshape(tuple(shape))
    if pos is not None:
        x, y = pos.detach().cpu().double().mT.numpy()
        ax.scatter(x, y, c=seen.numpy(), cmap="viridis")
        ax.set_aspect("equal")
    elif seen.ndim == 2:
        ax.imshow(seen.numpy(), interpolation="nearest")
    else:
        ax.bar(range(len(seen)), seen.numpy())
        ax.set(xlabel="site")
    return ax


def plot_energy(energies: Tensor, ax: Any = None, label: str | None = None) -> Any:
    """Dirichlet energy by depth, on a logarithmic axis.

    Args:
        energies: of `energy_by_depth`.
        ax: a matplotlib axis; call again with it to compare.
        label: of the line.

    Returns:
        the axis.

    >>> import torch
    >>> plot_energy(torch.tensor([1.0, 0.1])).get_yscale()
    'log'
    """
    ax = _axis(ax)
    ax.plot(range(len(energies)), energies.detach().cpu().numpy(), marker="o", label=label)
    ax.set(xlabel="layers", ylabel="Dirichlet energy", yscale="log")
    return ax
