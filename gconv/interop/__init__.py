"""Convert models of torch.nn and PyG, and back.

convert        a copy of a model whose layers run through gconv
preview        its report beforehand
restore        a converted model as it was
as_linear_map  a layer of torch.nn or PyG as a LinearMap
export         a GConv as a layer of torch.nn or PyG
from_torch     a layer of torch.nn or PyG as a GConv
twin           a layer on grids as a layer on a graph
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
