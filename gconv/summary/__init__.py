"""Summary of a model: parameters and cost of each layer, from one call."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gconv.analysis.calls import undisturbed
from gconv.arguments import checked, integer, kind_of, shown
from gconv.summary.calls import Calls, count_flops, now
from gconv.summary.table import Row, Summary

__all__ = ["Row", "Summary", "summary"]

ROUNDS = 5  # of a measurement, by default


@checked
def summary(model: nn.Module, *inputs: Any, measure: bool | int = False, **options: Any) -> Summary:
    """A table of a model's layers, their parameters and cost, with a row for each call of a layer.

    Equation: for a layer Y = sum_k S_k X W_k, multiply-adds are the number of entries of the S_k times the channels
    that they are applied to, plus sites times the entries of W: 9 i o h w for a 3 x 3 convolution of one image with
    padding 1, nnz(S) min(i, o) + n i o for a GCN layer.

    Meaning: the model is called on these inputs in eval mode without gradients; its modes, buffers and hooks are
    restored afterwards, also after an error. Layers of gconv, torch.nn, PyG and Keras, converted or not, are rows.
    Other modules are represented by their layers; what they compute themselves is the row "(other)".

    Traps: torch's FlopCounterMode returns twice these numbers, and does not count sparse products. As there, padding is
    counted; biases, activations, normalisations and pooling are not. A shared parameter is counted where it is first
    used.

    Args:
        model: a torch module; one with lazy layers is copied.
        inputs, options: its arguments, model(*inputs, **options).
        measure: whether to time it: the minimum of 5 rounds, or of the given number.

    Returns:
        Summary: with `.rows`, `.totals`, `.to_dict()`; it prints as a table.

    Raises:
        TypeError: if it is not a module or its forward does not accept these arguments.

    >>> from gconv import GConv
    >>> from gconv.operators import conv2d
    >>> net = nn.Sequential(GConv(conv2d(3, 8, 3, padding=1)), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    >>> found = summary(net, torch.zeros(1, 3, 8, 8))
    >>> [(row.path, row.operator, row.multiply_adds) for row in found.rows if row.operator]
    [('0', 'conv2d(3, 8, 3, padding=1)', 13824), ('3', 'pointwise(512, 10, ndim=1)', 5120)]
    >>> found.totals["parameters"], found.totals["multiply_adds"]
    (5354, 18944)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"summary takes a torch module, but {kind_of(model)} was given.")
    for x in inputs:
        if type(x) in (tuple, list) and x and all(type(n) is int for n in x):
            raise TypeError(
                f"summary takes the model's inputs, such as torch.zeros{tuple(x)}, but {shown(x)} was given."
            )
    try:
        inspect.signature(model.forward).bind(*inputs, **options)
    except TypeError as reason:
        raise TypeError(
            f"summary calls model(*inputs, **options), which {type(model).__name__} does not accept: {reason}."
        ) from None
    rounds = 0 if measure is False else ROUNDS if measure is True else integer(measure, "measure", 0)
    if any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        model = copy.deepcopy(model)

    def run() -> None:
        model(*inputs, **options)

    with undisturbed(model), torch.no_grad(), _layers_called():
        model.eval()
        if any(is_lazy(t) for t in model.parameters()):
            run()
        calls = Calls(model)
        with calls.watched(calls.describe):
            run()
        rest = count_flops(calls, run)
        least = [math.inf] * len(calls.found)
        seconds = math.inf
        for turn in range(rounds + bool(rounds)):  # the first round is a warm-up
            with calls.watched(lambda call, args, kwargs, out: None):
                total = _clocked(run)
            took = [call.seconds for call in calls.seen]
            if turn and len(took) == len(least):
                least, seconds = [min(pair) for pair in zip(least, took, strict=True)], min(seconds, total)
    rows = calls.rows(rest, least if seconds < math.inf else None)
    return Summary(_shared(rows, seconds), seconds if seconds < math.inf else None)


@contextmanager
def _layers_called() -> Iterator[None]:
    """Within this block, torch's transformer layers call their submodules instead of a fused kernel."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _shared(rows: list[Row], seconds: float) -> tuple[Row, ...]:
    """The rows with their shares of the time, or of the multiply-adds if nothing was measured."""
    timed = seconds < math.inf
    parts = [(row.measured or 0.0) if timed else row.multiply_adds for row in rows]
    whole = math.fsum(parts)
    return tuple(replace(row, share=part / whole if whole else 0.0) for row, part in zip(rows, parts, strict=True))


def _clocked(run: Callable[[], object]) -> float:
    start = now()
    run()
    return now() - start
