"""The table of features beside other libraries in docs/libraries.md: `python -m experiments.tables` writes it.

Every feature that gconv has names what shows it: a test, for `pytest`, or a script. What the others have was read in
their code and pages in autumn 2026 and not run; "?" where reading did not settle it. Below come the things that others
have and gconv has not.
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
    """A feature, whether gconv has it, what shows it, and the marks of the peers in the order of `PEERS`."""

    what: str
    gconv: str
    shown: tuple[str, ...]
    """Files and nodes of pytest (`tests/test_x.py::test_y`, options behind a blank), modules (`experiments.x`)."""
    peers: str
    note: str = ""

    def __post_init__(self) -> None:
        marks = self.peers.split()
        if len(marks) != len(PEERS) or not MARKS.issuperset({*marks, self.gconv}):
            raise ValueError(f"{self.what}: {len(PEERS)} marks out of {sorted(MARKS)} were expected, not {self.peers}.")
        if (self.gconv == "no") == bool(self.shown):
            raise ValueError(f"{self.what}: what gconv has needs something that shows it, and only that.")


def graph_operators() -> int:
    """How many of the registered operators run on graphs alone."""
    return sum(operator(name).samples()[0].spec.structure.domain == "graph" for name in list_operators())


SPECTRUM, NETWORKS = "tests/test_analysis_spectrum.py", "tests/test_analysis_networks.py"
RESPONSE, CONFORMANCE = "tests/test_analysis_response.py", "tests/experiments/test_conformance.py"

FEATURES: tuple[Feature, ...] = (
    # -- one description -----------------------------------------------------------------------------------------------
    Feature(
        "one description, several ways to compute it, held equal in value and all gradients",
        "yes",
        ("tests/test_laws.py::test_law_holds -k law_lowerings", "experiments.conformance.equivalence"),
        "partly partly partly no ? partly partly",
        "PyG's layers take an edge index or a sparse matrix, and its tests compare the outputs; DGL has three dense "
        "twins of sparse layers; PyGSP filters exactly or by Chebyshev series; "
        "einconv compares its einsums with torch; torch-harmonics has kernels beside a "
        "reference, compared in value and gradients",
    ),
    Feature(
        "chooses among them by predicted cost, and says why",
        "yes",
        ("tests/test_plan.py::test_a_plan_names_every_candidate_once_with_a_cost_or_a_reason",),
        "no partly no no ? ? no",
        "DGL's GraphConv takes the cheaper order of the product by the widths, and does not report it",
    ),
    Feature(
        "grids and graphs in one: a trained grid convolution becomes a graph convolution exactly",
        "yes",
        (
            "tests/test_plan.py::test_conv2d_is_its_selection_twin",
            "tests/experiments/test_cifar10_networks.py::test_twin_has_the_logits_of_the_cnn",
        ),
        "no no no no no no no",
        "SelectionConv (Hart, Whitney and Morse 2022) does this in a repository of its own, on top of PyG",
    ),
    Feature(
        "many signals on one graph in one call",
        "yes",
        ("tests/test_module.py::test_many_signals_on_one_graph_are_one_call",),
        "partly ? yes no yes no no",
        "PyG: the layers marked static in its cheat sheet; PyGSP: fixed filters, in numpy",
    ),
    Feature(
        "laws and an adjoint test that third-party operators can be held to, each with a negative control",
        "yes",
        ("tests/test_law_controls.py",),
        "no no no partly partly no no",
        "escnn: check_equivariance on its modules, empty on some; PyLops: dottest; neither has the controls",
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
        "the adjoint of every padding mode and of every graph convolution",
        "yes",
        ("tests/test_laws.py::test_law_holds -k law_adjoint", f"{SPECTRUM}::test_adjoint_gap_sees_a_wrong_transpose"),
        "no no partly partly partly partly partly",
        "PyGSP: of its filters, by synthesis; escnn, torch-harmonics: transposed layers; PyLops: of its own operators, "
        "CoLA: by .H; einconv: the input's derivative",
    ),
    Feature(
        "an algebra of maps: products, sums, multiples, blocks, transposes, restriction",
        "yes",
        ("tests/test_linear_algebra.py::test_any_expression_is_what_it_says",),
        "no no partly no yes no no",
        "PyGSP: filter banks side by side, and applied by @",
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
        "a layer clipped or normalised by the norm of the operator, not of its reshaped kernel",
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
        "converts models of other libraries, and back, with a report of what was left alone and why",
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
        "compares the operators of several libraries, entry by entry",
        "yes",
        (f"{CONFORMANCE}::test_what_a_library_applies_is_what_its_rule_says", "experiments.conformance"),
        "no no no no no no no",
        "gconv runs PyG, networkx and scipy for this; the rules of Kipf's code, DGL and Spektral are written down",
    ),
    Feature(
        "measures the error of equivariance",
        "yes",
        (f"{RESPONSE}::test_turns_and_flips_commute_with_symmetric_kernels_only",),
        "no no no yes no no partly",
        "torch-harmonics: in its tests",
    ),
    Feature(
        "measures oversmoothing: Dirichlet energy by depth, mean average distance",
        "yes",
        (
            f"{NETWORKS}::test_the_energy_is_the_quadratic_form_of_the_laplacian",
            f"{NETWORKS}::test_mean_average_distance",
        ),
        "no no partly no no no no",
        "PyGSP: the energy of a signal, in numpy; a pull request to PyG (9404) was closed unmerged",
    ),
    Feature(
        "measures over-squashing: influence, effective resistance",
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
        "PyG: influence by the Jacobian, from node to node",
    ),
    Feature(
        "FLOPs and bytes of every way to compute a layer",
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
        "gconv: {graph_operators}, and what messages may be is narrower; PyG: 67 names in nn.conv, base class and "
        "compiled twins among them; DGL: fewer than PyG; PyGSP: fixed filters",
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
        "PyGSP: spheres as graphs; e3nn, beside escnn: grids and tensors on the sphere",
    ),
    Feature("messages that are networks of both ends, mixed aggregators", "no", (), "yes yes no partly no no no",
            "outside of the family, see above; escnn: point convolutions"),
    Feature(
        "relations and types of nodes", "partly", ("tests/test_relations.py::test_bases_are_mixtures_of_relations",),
        "yes yes no no no no no", "gconv has relations and pairs of node sets, and no types of nodes",
    ),
    Feature("sampling of neighbourhoods and loaders for large graphs", "no", (), "yes yes no no no no no"),
    Feature("learned pooling and coarsening of graphs", "no", (), "yes partly partly no no no no",
            "PyGSP: Kron reduction, which is not learned"),
    Feature("explainers", "no", (), "yes yes no no no no no"),
    Feature("GPU kernels of its own", "no", (), "yes yes no no ? no yes",
            "gconv's compiled kernels are for the CPU; on other devices it is torch's operations"),
    Feature("training on several machines", "no", (), "yes yes no no partly no yes", "pylops-mpi, beside PyLops"),
    Feature("solvers: inverses, least squares, determinants", "no", (), "no no no no yes no no"),
    Feature("curvature of the loss: Kronecker factors", "no", (), "no no no no no yes no"),
)  # fmt: skip


def command(shown: str) -> str:
    """What to type.

    >>> command("tests/test_x.py::test_y"), command("experiments.citation.spectrum")
    ('pytest tests/test_x.py::test_y', 'python -m experiments.citation.spectrum')
    """
    return f"{'pytest' if shown.startswith('tests/') else 'python -m'} {shown}"


def table() -> str:
    """The table as markdown, its notes and its commands below it."""
    body, notes, commands = [], [], []
    for number, feature in enumerate(FEATURES, 1):
        body.append([str(number), feature.what, f"**{feature.gconv}**", *feature.peers.split()])
        if feature.note:
            notes.append(f"{number}: {feature.note.format(graph_operators=graph_operators())}.")
        if feature.shown:
            commands.append(f"| {number} | {'<br>'.join(f'`{command(s)}`' for s in feature.shown)} |")
    return "\n\n".join(
        [
            "The marks of the other libraries were read in their code and pages in autumn 2026; none was run for this "
            'table, except where a command runs PyG. "?" is what reading did not settle. gconv\'s marks are shown by '
            "the commands below.",
            markdown(("", "feature", "gconv", *PEERS), body),
            "Notes. " + " ".join(notes),
            "\n".join(["<details><summary>The command that shows each</summary>", "", "| | command |", "|---|---|"])
            + "\n"
            + "\n".join(commands)
            + "\n\n</details>",
        ]
    )


def fill(text: str) -> str:
    """`text` with the table between its markers. Raises: TableError where one stands alone."""
    return between(text, BLOCK, table)
