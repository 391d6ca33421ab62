"""Figures of results: labels can be read, bars stand at their ticks, and every figure is shown on a page."""

import itertools
import re

import pytest
from matplotlib.figure import Figure as Canvas

from experiments import tables
from experiments.harness import render
from experiments.harness.common import RESULTS, ROOT
from experiments.report import pictures

ROWS = {f: render.select(render.load(RESULTS, f.experiment), f.where) for f in tables.FIGURES}


def drawn(figure, rows):
    """The axes of a figure as `render.paint` draws it, with the layout computed."""
    canvas = Canvas(figsize=(7, 4), layout="constrained")
    axes = canvas.subplots()
    figure.draw(axes, rows)
    axes.set_title(figure.title)
    canvas.draw_without_rendering()
    return axes


def crowded(axes):
    """Pairs of tick labels that overlap, and texts that leave the canvas."""
    canvas = axes.figure.bbox
    found = []
    for side in (axes.xaxis, axes.yaxis):
        low, high = sorted(side.get_view_interval())
        ticks = [t for t in side.get_major_ticks() + side.get_minor_ticks() if low <= t.get_loc() <= high]
        labels = [t.label1 for t in ticks if t.label1.get_text()]
        boxes = {label.get_text(): label.get_window_extent() for label in labels}
        found += [pair for pair in itertools.combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
        boxes |= {side.label.get_text(): side.label.get_window_extent()}
        boxes |= {axes.get_title(): axes.title.get_window_extent()}
        if axes.get_legend():
            boxes |= {"legend": axes.get_legend().get_window_extent()}
        for text, box in boxes.items():
            if text and (box.x0 < -1 or box.y0 < -1 or box.x1 > canvas.x1 + 1 or box.y1 > canvas.y1 + 1):
                found.append((text,))
    return found


@pytest.mark.parametrize("figure", [f for f in tables.FIGURES if ROWS[f]], ids=lambda f: f.name)
def test_no_label_of_a_figure_is_cut_or_covered(figure):
    assert crowded(drawn(figure, ROWS[figure])) == []


def test_labels_that_are_cut_or_covered_would_be_noticed():
    """Negative control."""
    axes = Canvas(figsize=(7, 4)).subplots()

    axes.set_xticks([0.5, 0.501, 1], ["a long label", "another", "a label that is longer than the margin"])
    axes.figure.draw_without_rendering()
    assert crowded(axes) == [("a long label", "another"), ("a label that is longer than the margin",)]


def row(model, dataset, accuracy):
    return {"config": {"model": model, "dataset": dataset}, "metrics": {"acc": accuracy}}


def test_bars_stand_at_their_tick_where_networks_have_no_rows():
    rows = [row("a", "R", 0.5), row("b", "R", 0.6), row("c", "R", 0.7), row("c", "S", 0.8), row("c", "S", 0.9)]
    figure = render.Figure("f", "e", render.bars("config.model", "config.dataset", "metrics.acc"), "")
    axes = drawn(pictures.laid_out(figure, pictures.join_bars), rows)
    spans = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches if bar.get_width())
    ticks = list(axes.get_xticks())
    assert [label.get_text() for label in axes.get_xticklabels()] == ["R", "S"]
    assert (spans[0][0] + spans[2][1]) / 2 == pytest.approx(ticks[0])
    assert sum(spans[3]) / 2 == pytest.approx(ticks[1])
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    whiskers = {segment[0][0] for lines in axes.collections for segment in lines.get_segments()}
    assert sorted(whiskers) == pytest.approx([sum(span) / 2 for span in spans])
    assert axes.get_xlim() == (0, 2)


def test_bars_of_ratios_start_at_equal_times():
    def draw(axes, rows):
        axes.barh([0, 1], rows)
        axes.set_xscale("log")

    axes = drawn(pictures.laid_out(render.Figure("f", "e", draw, ""), pictures.bars_from_one), [0.5, 20])
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    assert ends == [(1, 0.5), (1, 20)]
    low, high = axes.get_xlim()
    shown = [t.get_text() for t in axes.get_xticklabels() if low <= t.get_position()[0] <= high]
    assert {"0.5", "1", "2", "5", "10", "20"} <= set(shown)


def test_images_fill_their_figure():
    def draw(axes, rows):
        axes.imshow([[0] * 9] * 3)

    axes = drawn(pictures.laid_out(render.Figure("f", "e", draw, "a title"), pictures.fit_image), [])
    high = axes.get_window_extent().height
    assert high > 0.75 * axes.figure.bbox.height


def test_best_network_is_the_top_line_of_dots():
    rows = [row("a", "R", 0.5), row("b", "R", 0.9), row("b", "R", 0.7), row("a", "S", 0.6), row("c", "S", 0.1)]
    axes = drawn(render.Figure("f", "e", pictures.dots("config.model", "config.dataset", "metrics.acc"), ""), rows)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "a", "b"]
    marks = {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in axes.containers}
    assert marks == {"R": [[50, 1], [80, 2]], "S": [[60, 1], [10, 0]]}


def test_every_figure_is_shown_on_a_page():
    text = "\n".join(page.read_text(encoding="utf-8") for page in tables.pages(ROOT))
    shown = set(re.findall(r"!\[[^\]]+\]\([./]*experiments/figures/(\w+)\.png\)", text))
    assert shown == {path.stem for path in (ROOT / "experiments" / "figures").glob("*.png")}
