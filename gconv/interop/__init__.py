"""Conversion of models from and to torch.nn and PyG.

convert        a copy of a model whose layers run through gconv
preview        the report of `convert`, without converting
restore        a converted model with its original classes
as_linear_map  a layer of torch.nn or PyG as a LinearMap
export         a GConv as a layer of torch.nn or PyG
from_torch     a layer of torch.nn or PyG as a GConv
twin           a grid layer as a graph layer
"""

from gconv.interop.convert import convert, preview, restore
from gconv.interop.export import export
from gconv.interop.from_torch import from_torch
from gconv.interop.maps import as_linear_map
from gconv.interop.report import Entry, Report
from gconv.interop.twin import Twin, twin

__all__ = [
    "Entry",
    "Report",
    "Twin",
    "as_linear_map",
    "convert",
    "export",
    "from_torch",
    "preview",
    "restore",
    "twin",
]
