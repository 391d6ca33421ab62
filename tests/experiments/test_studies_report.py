"""Sentences and figures of the ablations: computed from rows; no sentence while a network that it compares has none."""

import pytest
from matplotlib.figure import Figure

from experiments.images import overfitting, studies, superpixels
from experiments.images.pixel_operators import NETWORKS
from experiments.report import studies as ablations


def row(label, name, accuracy, **metrics):
    return {"config": {label: name}, "metrics": {"test_accuracy": accuracy, **metrics}}


def study_rows():
    names = list(studies.NETWORKS)
    return [
        row("network", name, 0.8 - i / 100, border_accuracy=0.7 - i / 100, multiply_adds=10.0 * (1 + i))
        for i, name in enumerate(names)
    ]


def test_each_choice_of_the_ablations_has_its_sentence():
    rows = study_rows()
    said = ablations.ablations(rows)
    assert [text.partition(":")[0] for text in said] == [
        "Kernel size", "Between the stages", "Padding", "Activation", "Convolutions per stage", "Lightweight blocks"
    ]  # fmt: skip
    assert said[0].startswith(
        "Kernel size: 1x1 79.0, 3x3 80.0, 5x5 78.0, 7x7 77.0 % at equal width; 1x1 76.0, 3x3 80.0"
    )
    assert "Two 3x3 convolutions per stage reach 80.0, one 5x5 73.0." in said[0]
    assert "At full resolution throughout, 70.0 with 11.0 times the multiply-adds." in said[1]
    assert said[2].endswith(
        "objects at the border: zeros 70.0, circular 59.0, reflect 58.0, replicate 57.0, no padding 56.0."
    )
    rows.append(row("network", "base", 0.7, border_accuracy=0.7, multiply_adds=10.0))  # a second seed
    assert "two 75.0" in ablations.ablations(rows)[4]


@pytest.mark.parametrize(
    ("lacking", "number"), [("one 5x5", 0), ("stride: none", 1), ("padding valid", 2), ("tanh", 3), ("depth 4", 4)]
)
def test_a_sentence_waits_for_all_its_networks(lacking, number):
    rows = study_rows()
    whole = ablations.ablations(rows)
    fewer = ablations.ablations([r for r in rows if r["config"]["network"] != lacking])
    assert fewer == [text for i, text in enumerate(whole) if i != number]


def test_the_remedy_that_helps_most_is_named():
    accuracy = {"none": 0.6, "augmentation": 0.7, "weight decay": 0.61, "dropout": 0.62, "early stopping": 0.59}
    rows = [
        row("remedy", name, y, gap=0.3 - i / 50, train_accuracy=[0.5, y], val_accuracy=[0.4, y - 0.1])
        for i, (name, y) in enumerate((accuracy | {"all": 0.75}).items())
    ]
    (said,) = ablations.remedies(rows)
    assert "augmentation +10.0, dropout +2.0, weight decay +1.0, early stopping -1.0, all together +15.0" in said
    assert "that of early stopping, 22.0 points; all together 20.0." in said
    assert ablations.remedies(rows[1:]) == []
    axes = Figure().subplots()
    ablations.draw_remedies(axes, [*rows, rows[0] | {"metrics": rows[0]["metrics"] | {"val_accuracy": [0.6, 0.7]}}])
    assert {*overfitting.REMEDIES} < {text.get_text() for text in axes.get_legend().get_texts()}
    assert axes.lines[1].get_ydata() == pytest.approx([50, 60])  # the mean of two seeds


def test_other_operators_are_placed_between_the_gcn_and_the_cnn():
    accuracy = dict.fromkeys(NETWORKS, 0.5) | {"1": 0.4, "9": 0.8, "monet": 0.7, "gat": 0.36}
    (said,) = ablations.recovered([row("network", name, y) for name, y in accuracy.items()])
    assert said.startswith("Of the 40.0 points") and "monet 75, " in said and said.endswith("gat -10.")


def test_superpixels_say_what_edges_are_worth():
    accuracy = dict.fromkeys(superpixels.MODELS, 0.5) | {"mlp": 0.45, "spline": 0.6, "cnn": 0.8}
    rows = [row("model", name, y) for name, y in accuracy.items()]
    (said,) = ablations.superpixel_sentences(rows)
    assert "spline +15.0, " in said and said.endswith("is 20.0 points above the best of them (spline).")
    assert ablations.superpixel_sentences(rows[:-1]) == []


def test_the_figure_of_the_ablations_marks_both_accuracies_of_each_network():
    axes = Figure().subplots()
    ablations.draw_ablations(axes, study_rows())
    assert [text.get_text() for text in axes.get_yticklabels()] == list(studies.NETWORKS)[::-1]
    assert axes.lines[0].get_xdata()[-1] == pytest.approx(80)
