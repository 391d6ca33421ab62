"""Two sets of nodes: every law on rectangular domains, PyG's layers on pairs, and what is refused."""

import pickle

import pytest
import torch
from torch_geometric import nn as pyg

from gconv import Bipartite, GConv, Graph, analysis, list_operators
from gconv.operators import (
    agnn, feast, gat, gatv2, gcn, gin, graphconv, le, mf, monet, nnconv, relational, resgated, rgat, sage, simple,
    spline, supergat, transformer, wl_continuous,
)  # fmt: skip
from gconv.spec import Sample, operator, reads
from gconv.testing import LAWS, TOL, assert_close, law_compile
