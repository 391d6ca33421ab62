"""Published numbers as plain data, each with its protocol and the way in which it was obtained.

`how` states how reliable the transcription is: 'read in source' (the original repository or result file), 'quoted in X'
(a later table), 'from memory' (unverified). It is always printed with the number.
"""

from experiments.harness.render import Published

_GAT = "Velickovic et al. 2018, table 2"
_KIPF = "public split, last epoch, window 10"
_VITA = "VITA-Group/Deep_GCN_Benchmarking"
_VITA_RULE = "public split, 100 runs, lowest validation loss, patience 100"
_LONG = "public split, up to 1,500 epochs, patience 100; 400 epochs here"
_LATER = "quoted in a later paper's table"
_GREEN = "fedem96/NeuralNetworksOnGraphs"
_RERUN = "public split, rerun in TensorFlow, 100 seeds"


def _pair(
    row: str,
    cora: tuple[float, float | None] | None,
    citeseer: tuple[float, float | None] | None,
    source: str,
    how: str,
    protocol: str = "public split",
) -> tuple[Published, ...]:
    cells = (("Cora", cora), ("CiteSeer", citeseer))
    return tuple(Published(row, column, *cell, source, how, protocol) for column, cell in cells if cell)


# Test accuracy in %, as given in the papers.
CITATION: tuple[Published, ...] = (
    *_pair("mlp", (55.1, None), (46.5, None), _GAT, _LATER),
    *_pair("gcn", (81.5, None), (70.3, None), "Kipf and Welling 2017", f"{_LATER}, and in DGL's README", _KIPF),
    *_pair("cheb", (81.2, None), (69.8, None), _GAT, f"{_LATER}; it mixes K (from memory: 2 on Cora, 3 on CiteSeer)"),
    *_pair("sgc", (81.0, None), (71.9, None), "Wu et al. 2019", "read in source (Tiiiger/SGC README)"),
    *_pair("tag", (83.3, None), (71.4, None), "Du et al. 2017", "quoted in DGL's tagcn README"),
    *_pair("appnp", (83.3, 0.5), (71.8, 0.5), "Fey and Lenssen 2019, table 1", "from memory", "public split, 100 runs"),
    *_pair("gat", (83.0, 0.7), (72.5, 0.7), "Velickovic et al. 2018", _LATER),
    *_pair("sage", (78.9, 0.8), (67.4, 0.7), "Feng et al. 2020 (GRAND), its table", "from memory"),
    *_pair("monet", (81.7, 0.5), None, _GAT, _LATER),
    *_pair("ssg", (83.0, None), (73.6, None), "Zhu and Koniusz 2021", "read in source (allenhaozhu/SSGC README)"),
    *_pair("arma", (83.4, 0.6), (72.5, 0.4), "Bianchi et al. 2019, table 1", "quoted in DGL's arma README"),
    *_pair("agnn", (83.1, 0.1), (71.7, 0.1), "Thekumparampil et al. 2018", "from memory"),
    *_pair("gpr", (83.1, None), (71.0, None), _VITA, "read in source", _VITA_RULE),
    *_pair("gcn2", (85.5, None), (73.4, None), "Chen et al. 2020", "read in source (chennnM/GCNII README)", _LONG),
    *_pair("chebnetii", (83.7, None), (72.8, None), "He et al. 2022", "from memory"),
)

# Test accuracy in independent reruns of the same protocol, which are more comparable.
CITATION_RERUNS: tuple[Published, ...] = (
    *_pair("gcn", (80.6, 0.6), (68.7, 0.9), _GREEN, "read in source", _RERUN),
    *_pair("cheb", (82.0, 0.6), (70.5, 0.7), _GREEN, "read in source", _RERUN),
    *_pair("gat", (83.1, 0.4), (71.7, 0.7), _GREEN, "read in source", _RERUN),
    *_pair("sgc", (81.9, None), (72.5, None), "DGL's sgc README", "read in source"),
    *_pair("tag", (81.2, None), (71.5, None), "DGL's tagcn README", "read in source"),
    *_pair("appnp", (83.7, None), (71.5, None), "DGL's appnp README", "read in source", "public split, GCN's settings"),
    *_pair("monet", (81.6, None), None, "DGL's monet README", "read in source"),
    *_pair("sage", (83.3, None), (71.1, None), "DGL's graphsage README", "read in source"),
    *_pair("arma", (82.2, 0.3), (72.5, 0.2), "DGL's arma README", "read in source"),
    *_pair("arma", (82.3, 0.5), (70.9, 1.1), "PyG", "quoted in DGL's arma README"),
)

# The same on random splits, in which the split changes and the initial weights do not.
_SPLITS = "random splits, 20 training papers per class, 100 runs"
CITATION_SPLITS_RERUNS: tuple[Published, ...] = (
    *_pair("gcn", (79.2, 1.7), (68.0, 1.8), _GREEN, "read in source", _SPLITS),
    *_pair("cheb", (78.9, 1.8), (68.2, 1.9), _GREEN, "read in source", _SPLITS),
    *_pair("gat", (81.0, 1.7), (69.7, 1.7), _GREEN, "read in source", _SPLITS),
)

# Causes of means below the published ones, suspected if not tested: (model, data set) -> cause.
CITATION_MISSES: dict[tuple[str, str], str] = {
    ("sgc", "Cora"): "the paper tunes the weight decay in many trials, here nine values by validation accuracy",
    ("tag", "Cora"): "settings that the paper's summary leaves open; the independent rerun is lower still",
    ("tag", "CiteSeer"): "settings that the paper's summary leaves open; the independent rerun has 71.5",
    ("gat", "CiteSeer"): (
        "the paper also drops out the transformed features, which `gat` does not; the reruns stay below it too"
    ),
    ("ssg", "Cora"): "200 epochs; with the paper's 100 (tested below) it is within 0.5",
    ("agnn", "Cora"): "the published spread (0.1) may be that of the mean; not tested",
    ("agnn", "CiteSeer"): "the published spread (0.1) may be that of the mean; not tested",
    ("arma", "Cora"): (
        "DGL also drops out the input of the skip; the independent reruns are lower than the paper, too; more epochs "
        "do not help (tested below)"
    ),
    ("arma", "CiteSeer"): "as on Cora; of the independent reruns, one is lower than the paper",
    ("chebnetii", "Cora"): (
        "the paper gives the coefficients of the filter a learning rate and a weight decay of their own; more epochs "
        "do not help (tested below)"
    ),
    ("chebnetii", "CiteSeer"): (
        "the filter starts as the identity, for which 200 epochs are few: 1,500 close somewhat less than half of the "
        "gap (tested below); for the rest as on Cora"
    ),
    ("monet", "Cora"): (
        "the paper sends the pseudo-coordinates through a learned layer with tanh, here they are fixed, and no node is "
        "its own neighbour"
    ),
}
