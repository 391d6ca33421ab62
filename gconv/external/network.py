"""Layer-wise inference: a trained network on all nodes of a graph on disk, one layer at a time."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gconv.arguments import checked, plural, shown
from gconv.external.features import Features, as_array
from gconv.external.files import (
    HEADER,
    Progress,
    as_bytes,
    header,
    load,
    locked,
    opened,
    read_json,
    sync,
    using,
    write_at,
    write_json,
)
from gconv.external.graph import NO_PROGRESS, DiskGraph
from gconv.external.product import BLOCK_BYTES, Scaling, propagate
from gconv.interop.layers import Other, identify
from gconv.minibatch import WITHOUT_OWN, is_chain, modules_of, on_graphs
from gconv.mixing import plain, spread_bias
from gconv.module import GConv
from gconv.operators.neighbourhood import Neighbours
from gconv.operators.simple import Aggregation

RowMap = Callable[[int, int], Tensor]


@checked
def infer(
    net: nn.Sequential,
    graph: DiskGraph | str | os.PathLike[str],
    x: Any,
    out: str | os.PathLike[str],
    *,
    memory: int | str = "2GB",
    progress: Progress = NO_PROGRESS,
) -> np.ndarray:
    """The output of a trained network at all nodes, computed layer by layer on disk.

    Meaning: each layer Y = S X W_0 + X W_1 + b takes one streamed product S X, or S (X W_0) if that has fewer channels,
    and one pass over the rows, which also applies the modules up to the next layer. Unlike with blocks of neighbours,
    no node is computed twice, and the memory is that of `propagate`. The result is that of the network in evaluation
    mode on the whole graph, up to rounding. If the call is repeated after an interruption, it resumes; at most one pass
    over the rows is repeated.

    Args:
        net: a Sequential, possibly nested, of layers with one adjacency (gcn, sage with mean or sum, graphconv,
            lightgcn, simple with mean or sum) and modules that act on each row separately. It may have been trained on
            blocks.
        graph: a DiskGraph or its folder.
        x: (n, i): a .npy or .npz file, a tensor or an array.
        out: a folder for output.npy.
        memory: limit for the whole process, such as "8GB".
        progress: called with a description and the numbers of completed and of all rows.

    Returns:
        (n, o), a read-only memory map.

    Raises:
        TypeError: if net is not a Sequential.
        ValueError: if net has no modules or another layer, x does not match, or `out` has the output of another call.
        DiskError: if a file cannot be read or written.

    >>> import tempfile
    >>> from gconv.operators import gcn, sage
    >>> net = nn.Sequential(GConv(gcn(4, 8)), nn.ReLU(), GConv(sage(8, 2)))
    >>> edges, x = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), torch.randn(3, 4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     graph = DiskGraph.build(f"{folder}/graph", edges, memory="4GB")
    ...     y = infer(net, graph, x, f"{folder}/y", memory="4GB")
    >>> torch.allclose(torch.tensor(y), net[2](net[0](x, edges).relu(), edges), atol=1e-6)
    True
    """
    if not is_chain(net):
        raise TypeError(f"infer takes an nn.Sequential{WITHOUT_OWN}, but {shown(net)} was given.")
    modules = list(modules_of(net))
    if not modules:
        raise ValueError("infer takes an nn.Sequential of layers, but this one is empty.")
    stages = _stages(modules)
    graph = graph if isinstance(graph, DiskGraph) else DiskGraph.open(graph)
    features, folder = Features(x), Path(out)
    if features.shape[0] != graph.nodes:
        raise ValueError(
            f"The graph has {plural(graph.nodes, 'node')}, but {features.name} has {plural(features.shape[0], 'row')}."
        )
    settings = {
        "graph": read_json(graph.path / "graph.json"), "features": features.fingerprint, "network": _fingerprint(net)
    }  # fmt: skip
    with locked(folder), torch.no_grad():
        known = read_json(folder / "infer.json")
        if known is not None and known.get("settings") != settings:
            raise ValueError(f"{folder} holds the output of another call; delete it or use another folder.")
        if known is None or not known["done"]:
            write_json(folder / "infer.json", {"done": False, "settings": settings})
            signal: Any = x
            with _evaluating(net):
                for number, stage in enumerate(stages):
                    if stage.layer is not None or stage.after:
                        signal = _Run(graph, folder / "work", number, stage, memory, progress)(signal)
            with using(folder / "output.npy"):
                os.replace(signal, folder / "output.npy")
            write_json(folder / "infer.json", {"done": True, "settings": settings})
            shutil.rmtree(folder / "work", ignore_errors=True)
    return load(folder / "output.npy")


def scaling_of(layer: GConv) -> Scaling:
    """The normalisation S of a layer with a single unweighted adjacency.

    Raises:
        ValueError: for other layers, and layers with hooks or a forward of their own.
    """
    at, found = layer.spec.structure, identify(layer)
    if isinstance(found, Other):
        raise ValueError(f"{layer.spec} cannot run on a graph on disk: {found.reason}.")
    if isinstance(at, Aggregation) and at.aggr != "max" and at.loops == "keep" and not at.root:
        return Scaling("row" if at.aggr == "mean" else None, False)
    if (
        isinstance(at, Neighbours)
        and (at.reduce, at.fill) == ("sum", 1)
        and at.loops in ("keep", "fill")
        and (at.norm is None or (at.norm == "sym" and not at.mean))
    ):
        return Scaling("row" if at.mean else at.norm, at.loops == "fill")
    raise ValueError(
        f"{layer.spec} cannot run on a graph on disk: layers that read one adjacency can (gcn, sage with mean or sum, "
        "graphconv, lightgcn, simple with mean or sum). Run other layers on blocks of Graph.sample, with "
        "gconv.apply_blocks."
    )


@dataclass
class _Stage:
    """An optional layer, the scaling of its adjacency, and the modules that follow it."""

    layer: GConv | None = None
    scaling: Scaling | None = None
    after: list[nn.Module] = field(default_factory=list)


def _stages(modules: Iterable[nn.Module]) -> list[_Stage]:
    """The modules in order, divided at the layers on graphs. Raises: ValueError for a layer that cannot be streamed."""
    stages = [_Stage()]
    for module in modules:
        if on_graphs(module):
            assert isinstance(module, GConv)
            stages.append(_Stage(module, scaling_of(module)))
        else:
            stages[-1].after.append(module)
    return stages


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards each module is in its former mode."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _fingerprint(net: nn.Module) -> str:
    total = hashlib.sha256(repr(net).encode())
    for name, tensor in net.state_dict().items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(as_bytes(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b"")
    return total.hexdigest()


class _Run:
    """Computes a stage of a network."""

    def __init__(
        self, graph: DiskGraph, work: Path, number: int, stage: _Stage, memory: int | str, progress: Progress
    ) -> None:
        self.graph, self.number, self.memory, self.progress = graph, number, memory, progress
        self.layer, self.scaling, self.after = stage.layer, stage.scaling, stage.after
        self.path, self.folder = work / f"signal-{number}.npy", work / f"product-{number}"
        with using(work):
            work.mkdir(exist_ok=True)

    def __call__(self, signal: Any) -> Path:
        if self.path.exists():
            return self.path
        x = Features(signal)
        if self.layer is None:
            self.write(self.path, lambda first, last: self.finished(self.rows(x, first, last)))
            return self.path
        assert self.scaling is not None
        layer = self.layer
        mixing, W = plain(layer.spec.mixing, layer.weight)
        bias = spread_bias(layer.spec.mixing, layer.bias)
        o = mixing.channels(x.shape[1])
        narrow = mixing.is_dense and mixing.groups == 1 and o < x.shape[1]
        if narrow:  # S (X W_0) + X W_1 + b
            assert W is not None
            spread = self.path.with_name(f"narrow-{self.number}.npy")
            if not spread.exists():
                self.write(spread, lambda first, last: self.rows(x, first, last) @ W[0])
            product = Features(self.propagated(spread))
        else:
            product = Features(self.propagated(signal))

        def combined(first: int, last: int) -> Tensor:
            near, own = self.rows(product, first, last), None
            if mixing.taps == 2:
                own = self.rows(x, first, last)
            if narrow:
                assert W is not None
                y = near if own is None else near + own @ W[1]
            else:
                y = mixing.gather(torch.stack([near] if own is None else [near, own]), W)
            return self.finished(y if bias is None else y + bias)

        self.write(self.path, combined)
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.path

    def propagated(self, signal: Any) -> Path:
        assert self.scaling is not None
        like = self.parameter()
        propagate(
            self.graph, signal, 1, self.folder, norm=self.scaling.norm, loops=self.scaling.loops, memory=self.memory,
            dtype=torch.float64 if like is not None and like.dtype == torch.float64 else None, progress=self.progress,
        )  # fmt: skip
        return self.folder / "power-1.npy"

    def parameter(self) -> Tensor | None:
        modules = [*([] if self.layer is None else [self.layer]), *self.after]
        return next((p for module in modules for p in module.parameters()), None)

    def rows(self, x: Features, first: int, last: int) -> Tensor:
        """Rows of a signal, with the dtype and device of the weights."""
        rows, like = torch.from_numpy(np.array(x.read(first, last))), self.parameter()
        if like is not None:
            return rows.to(like)
        return rows if rows.is_floating_point() else rows.float()

    def finished(self, y: Tensor) -> Tensor:
        for module in self.after:
            y = module(y)
        return y

    def write(self, path: Path, make: RowMap) -> None:
        """Write a signal by windows of rows; the file gets its final name when it is complete."""
        trial, n, y = path.with_name(f"{path.name}.part"), self.graph.nodes, None
        with opened(trial, write=True) as file:
            end = HEADER
            for first, last in self.windows():
                y = as_array(make(first, last))
                if y.ndim != 2 or len(y) != last - first:
                    raise ValueError(f"Modules between layers must return (rows, channels), but they give {y.shape}.")
                end = write_at(file, trial, y, end)
                self.progress(f"stage {self.number}, rows", last, n)
            assert y is not None
            write_at(file, trial, header(y.dtype, (n, y.shape[1])), 0)
            sync(file, trial)
        with using(path):
            os.replace(trial, path)

    def windows(self) -> Iterator[tuple[int, int]]:
        modules = [*([] if self.layer is None else [self.layer]), *self.after]
        widest = max((max(p.shape) for m in modules for p in m.parameters() if p.ndim), default=256)
        step = max(1, BLOCK_BYTES // (16 * widest))
        for first in range(0, max(1, self.graph.nodes), step):
            yield first, min(self.graph.nodes, first + step)
