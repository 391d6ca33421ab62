"""The feature comparison with other libraries in docs/libraries.md, rendered by `python -m experiments.tables`.

Every feature of gconv names a test or a script that demonstrates it. The features of the other libraries were taken
from their code and documentation in autumn 2026 and not run; "?" means that these did not settle the question. The
last entries are features that other libraries have and gconv lacks.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.report.operators import between, markdown
from gconv import list_operators
from gconv.spec import operator

PEERS = ("PyG", "DGL", "PyGSP", "escnn", "linear_operator, CoLA, PyLops", "einconv", "torch-harmonics")
MARKS = {"yes", "partly", "no", "?"}
BLOCK = "features"


@dataclass(frozen=True)
class Feature:
    """A feature, whether gconv has it, what demonstrates it, and the marks of the peers in the order of `PEERS`."""

    what: str
    gconv: str
    shown: tuple[str, ...]
    """Test nodes for pytest (`tests/test_x.py::test_y`, followed by options) or modules (`experiments.x`)."""
    peers: str
    note: str = ""

    def __post_init__(self) -> None:
        marks = self.peers.split()
        if len(marks) != len(PEERS) or not MARKS.issuperset({*marks, self.gconv}):
            raise ValueError(f"{self.what}: {len(PEERS)} marks out of {sorted(MARKS)} were expected, not {self.peers}.")
        if (self.gconv == "no") == bool(self.shown):
            raise ValueError(f"{self.what}: what gconv has needs something that shows it, and only that.")


def graph_operators() -> int:
    """The number of registered operators that run only on graphs."""
    return sum(operator(name).samples()[0].spec.structure.domain == "graph" for name in list_operators())


SPECTRUM, NETWORKS = "tests/test_analysis_spectrum.py", "tests/test_analysis_networks.py"
RESPONSE, CONFORMANCE = "tests/test_analysis_response.py", "tests/experiments/test_conformance.py"

FEATURES: tuple[Feature, ...] = (
    # -- one description -----------------------------------------------------------------------------------------------
    Feature(
        "one description, several algorithms, tested to be equal in value and all gradients",
        "yes",
        ("tests/test_laws.py::test_law_holds -k law_lowerings", "experiments.conformance.equivalence"),
        "partly partly partly no ? partly partly",
        "PyG's layers accept an edge index or a sparse matrix, and its tests compare the outputs; DGL has dense "
        "versions of three sparse layers; PyGSP filters exactly or by Chebyshev series; "
        "einconv compares its einsums with torch; torch-harmonics compares its kernels with a "
        "reference in value and gradients",
    ),
    Feature(
        "choice among them by predicted cost, with an explanation",
        "yes",
        ("tests/test_plan.py::test_a_plan_names_every_candidate_once_with_a_cost_or_a_reason",),
        "no partly no no ? ? no",
        "DGL's GraphConv chooses the cheaper order of the two products by the channel widths, and does not report it",
    ),
    Feature(
        "grids and graphs in one framework: a trained grid convolution can be converted exactly to a graph convolution",
        "yes",
        (
            "tests/test_plan.py::test_conv2d_is_its_selection_twin",
            "tests/experiments/test_cifar10_networks.py::test_twin_has_the_logits_of_the_cnn",
        ),
        "no no no no no no no",
        "SelectionConv (Hart, Whitney and Morse 2022) does this in a separate repository, based on PyG",
    ),
    Feature(
        "many signals on one graph in one call",
        "yes",
        ("tests/test_module.py::test_many_signals_on_one_graph_are_one_call",),
        "partly ? yes no yes no no",
        "PyG: layers marked as static in its cheat sheet; PyGSP: fixed filters, in numpy",
    ),
    Feature(
        "public tests (laws, adjoint test) for third-party operators, each with a negative control",
        "yes",
        ("tests/test_law_controls.py",),
        "no no no partly partly no no",
        "escnn: check_equivariance of its modules, empty for some; PyLops: dottest; neither has negative controls",
    ),
    # -- a layer as a linear map ---------------------------------------------------------------------------------------
    Feature(
        "the matrix of any convolution (stride, dilation, groups, padding modes, 1-D to 3-D), sparse, differentiable",
        "yes",
        (
            "tests/test_interop_torch.py::test_linear_maps",
            f"{SPECTRUM}::test_sparse_matrices_are_the_dense_one",
            f"{SPECTRUM}::test_sparse_values_carry_the_gradient",
        ),
        "no no partly no partly no no",
        "PyGSP: the frame of a filter bank, dense; PyLops: convmtx in 1-D; "
        "CoLA: one channel, in JAX; linear_operator: symmetric Toeplitz in 1-D",
    ),
    Feature(
        "the adjoint for every padding mode and every graph convolution",
        "yes",
        ("tests/test_laws.py::test_law_holds -k law_adjoint", f"{SPECTRUM}::test_adjoint_gap_sees_a_wrong_transpose"),
        "no no partly partly partly partly partly",
        "PyGSP: of its filters, by synthesis; escnn, torch-harmonics: transposed layers; PyLops: of its own operators; "
        "CoLA: by .H; einconv: the derivative with respect to the input",
    ),
    Feature(
        "an algebra of maps: products, sums, multiples, blocks, transposes, restriction",
        "yes",
        ("tests/test_linear_algebra.py::test_any_expression_is_what_it_says",),
        "no no partly no yes no no",
        "PyGSP: concatenated filter banks, applied by @",
    ),
    Feature(
        "exact singular values of a circular convolution by FFT",
        "yes",
        (f"{SPECTRUM}::test_fourier_blocks_on_grids_are_exact",),
        "no no no no partly no no",
        "generic decompositions of any operator; Sedghi, Gupta and Long (2019) published the method with code",
    ),
    Feature(
        "exact singular values of a graph convolution with many channels, one graph frequency at a time",
        "yes",
        (f"{SPECTRUM}::test_graph_spectra_are_exact", "experiments.citation.spectrum"),
        "no no partly no partly no no",
        "PyGSP: frame bounds of filters with one channel; linear algebra: generic decompositions",
    ),
    Feature(
        "a certified Lipschitz bound of a whole network",
        "yes",
        (f"{NETWORKS}::test_no_pair_of_inputs_is_stretched_beyond_the_bound",),
        "no no no no no no no",
    ),
    Feature(
        "clipping or normalisation of a layer by its operator norm, not by that of the reshaped kernel",
        "yes",
        (
            f"{NETWORKS}::test_normalising_sets_the_true_norm",
            f"{NETWORKS}::test_clipping_is_exact_where_the_kernel_is_as_large_as_the_grid",
        ),
        "no no no no no no no",
    ),
    Feature(
        "the frequency response of a trained layer",
        "yes",
        (f"{RESPONSE}::test_an_eigenvector_comes_out_times_the_gain",),
        "no no partly no no no no",
        "PyGSP: of its fixed filters",
    ),
    # -- models --------------------------------------------------------------------------------------------------------
    Feature(
        "conversion of models of other libraries, and back, with a report of unconverted layers and the reasons",
        "yes",
        (
            "tests/test_interop_pyg.py::test_models_of_pyg",
            "tests/test_interop_torch.py::test_the_report_of_a_model",
            "tests/test_interop_export.py::test_there_and_back",
        ),
        "no no no partly no no no",
        "escnn: export() to torch.nn",
    ),
    Feature(
        "comparison of the operators of several libraries, entry by entry",
        "yes",
        (f"{CONFORMANCE}::test_what_a_library_applies_is_what_its_rule_says", "experiments.conformance"),
        "no no no no no no no",
        "gconv runs PyG, networkx and scipy for this; the rules of Kipf's code, DGL and Spektral are reimplemented",
    ),
    Feature(
        "equivariance error of a layer or network",
        "yes",
        (f"{RESPONSE}::test_turns_and_flips_commute_with_symmetric_kernels_only",),
        "no no no yes no no partly",
        "torch-harmonics: in its tests",
    ),
    Feature(
        "measures of oversmoothing: Dirichlet energy by depth, mean average distance",
        "yes",
        (
            f"{NETWORKS}::test_the_energy_is_the_quadratic_form_of_the_laplacian",
            f"{NETWORKS}::test_mean_average_distance",
        ),
        "no no partly no no no no",
        "PyGSP: the energy of a signal, in numpy; a pull request to PyG (9404) was closed unmerged",
    ),
    Feature(
        "measures of over-squashing: influence, effective resistance",
        "yes",
        (f"{NETWORKS}::test_influence_of_a_network_is_its_jacobian", f"{NETWORKS}::test_resistances_are_networkx_s"),
        "partly no partly no no no no",
        "PyG: influence; PyGSP: resistance distances, in numpy",
    ),
    Feature(
        "receptive fields, theoretical and effective",
        "yes",
        (f"{RESPONSE}::test_the_effective_field_lies_in_the_theoretical_one",),
        "partly no no no no no no",
        "PyG: influence between nodes, by the Jacobian",
    ),
    Feature(
        "FLOPs and bytes of every algorithm for a layer",
        "yes",
        (f"{NETWORKS}::test_flops_of_torch_s_kernels_are_what_torch_counts",),
        "partly no no no no no no",
        "PyG: parameters, memory and time",
    ),
    # -- what others have more of --------------------------------------------------------------------------------------
    Feature(
        "graph convolutions",
        "yes",
        ("tests/test_oracles.py::test_every_operator_has_an_oracle_or_a_reason",),
        "yes yes partly no no no no",
        "gconv: {graph_operators}, with a narrower class of messages; PyG: 67 names in nn.conv, including the base "
        "class and compiled variants; DGL: fewer than PyG; PyGSP: fixed filters",
    ),
    Feature(
        "group-equivariant convolutions",
        "partly",
        ("tests/test_grid_operators.py::test_p4_layers_turn_with_the_image",),
        "no no no yes no no partly",
        "gconv has p4 and p4m only; torch-harmonics: the rotations of the sphere",
    ),
    Feature("steerable kernels, continuous rotations", "no", (), "no no no yes no no partly"),
    Feature(
        "convolutions on the sphere", "no", (), "no no partly partly no no yes",
        "PyGSP: spheres as graphs; e3nn, which complements escnn: grids and tensors on the sphere",
    ),
    Feature("messages that are networks of both endpoints, mixed aggregators", "no", (), "yes yes no partly no no no",
            "outside the family of gconv; escnn: point convolutions"),
    Feature(
        "edge types and node types", "partly", ("tests/test_relations.py::test_bases_are_mixtures_of_relations",),
        "yes yes no no no no no", "gconv has edge types and pairs of node sets, but no node types",
    ),
    Feature("neighbour sampling and loaders for large graphs", "partly",
            ("tests/test_sampling.py::test_batches_of_neighbour_loaders_are_blocks",), "yes yes no no no no no",
            "gconv samples blocks and converts batches of PyG's NeighborLoader"),
    Feature("learned graph pooling and coarsening", "no", (), "yes partly partly no no no no",
            "PyGSP: Kron reduction, not learned"),
    Feature("explainers", "partly",
            ("tests/test_affine.py::test_it_is_the_network_within_a_region_and_not_outside",), "yes yes no no no no no",
            "gconv: exact attributions of piecewise linear networks only"),
    Feature("own GPU kernels", "partly",
            ("tests/test_triton.py::test_triton_kernels_are_the_cpus_under_the_interpreter",), "yes yes no no ? no yes",
            "gconv's Triton kernels have been run only in Triton's interpreter"),
    Feature("training on several machines", "partly",
            ("tests/test_parallel.py::test_several_processes_give_what_one_does",), "yes yes no no partly no yes",
            "gconv: several processes, tested on one machine with gloo; pylops-mpi, which complements PyLops"),
    Feature("solvers: inverses, least squares, determinants", "no", (), "no no no no yes no no"),
    Feature("curvature of the loss: Kronecker factors", "no", (), "no no no no no yes no"),
)  # fmt: skip


def command(shown: str) -> str:
    """The shell command.

    >>> command("tests/test_x.py::test_y"), command("experiments.citation.spectrum")
    ('pytest tests/test_x.py::test_y', 'python -m experiments.citation.spectrum')
    """
    return f"{'pytest' if shown.startswith('tests/') else 'python -m'} {shown}"


def table() -> str:
    """The table as markdown, with notes and commands below it."""
    body, notes, commands = [], [], []
    for number, feature in enumerate(FEATURES, 1):
        body.append([str(number), feature.what, f"**{feature.gconv}**", *feature.peers.split()])
        if feature.note:
            notes.append(f"- {number}: {feature.note.format(graph_operators=graph_operators())}.")
        if feature.shown:
            commands.append(f"| {number} | {'<br>'.join(f'`{command(s)}`' for s in feature.shown)} |")
    return "\n\n".join(
        [
            "The entries for other libraries were taken from their code and documentation in autumn 2026; none was run "
            'for this table, except where a command runs PyG. "?" means that this did not settle the question. The '
            "commands below the table demonstrate gconv's features.",
            markdown(("", "feature", "gconv", *PEERS), body, left=("feature",)),
            "Notes on rows:",
            "\n".join(notes),
            "\n".join(["<details><summary>Commands that demonstrate them</summary>", "", "| | command |", "|---|---|"])
            + "\n"
            + "\n".join(commands)
            + "\n\n</details>",
        ]
    )


def fill(text: str) -> str:
    """`text` with the table between its markers. Raises: TableError where one stands alone."""
    return between(text, BLOCK, table)
