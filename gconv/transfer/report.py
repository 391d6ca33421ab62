"""The report of a transferred network: for each layer, whether it is exact."""

from __future__ import annotations

from dataclasses import dataclass

from gconv.arguments import plural
from gconv.reports import LayerReport
from gconv.spec import OperatorSpec


@dataclass(frozen=True)
class Transferred:
    """The report of one transferred layer.

    Args:
        path: its qualified name in the model, or the function that the model calls.
        layer: the layer on images.
        spec: the operator on sites; None if it acts on each site separately, or after the site axis is gone.
        sites: the numbers of input and output sites.
        note: "exact", or what is approximated or missing.

    >>> print(Transferred("0", "ReLU", None, (16, 16), "exact"))
    0: ReLU: exact
    """

    path: str
    layer: str
    spec: OperatorSpec | None
    sites: tuple[int, int]
    note: str

    def __str__(self) -> str:
        became = (
            f" -> {self.spec!r}, {self.sites[0]} -> {plural(self.sites[1], 'site')}" if self.spec is not None else ""
        )
        return f"{self.path}: {self.layer}{became}: {self.note}"


@dataclass(frozen=True)
class TransferReport(LayerReport[Transferred]):
    """The layers of a transferred network, in order of execution; see `gconv.reports.LayerReport`.

    >>> import torch
    >>> from gconv import transfer
    >>> net = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(1, 2, 3, padding=1))
    >>> found = transfer(net, torch.ones(4, 4, dtype=torch.bool))
    >>> isinstance(found.report, TransferReport), [entry.note for entry in found.report]
    (True, ['exact', 'exact'])
    """

    @property
    def summary(self) -> str:
        exact = sum(entry.note == "exact" for entry in self)
        return f"{exact} of {len(self)} layers are exact."
