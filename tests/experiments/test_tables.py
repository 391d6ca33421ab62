import copy
import json
import re
from dataclasses import replace

import pytest
import torch

from experiments import sweep, tables
from experiments.citation.published import CITATION, CITATION_RERUNS, Published
from experiments.detection import bccd
from experiments.harness import render
from experiments.harness.common import RESULTS
from experiments.harness.render import Table, TableError, fill, last, mean_std, one
from experiments.interpretability import cells
from experiments.segmentation import cells as areas
from experiments.segmentation import membrane

README = "# Title\n\n<!-- table:citation -->\n<!-- /table:citation -->\n\nThe end.\n"


def row(model="gcn", dataset="Cora", seed=0, accuracy=0.8, experiment="citation", data="h1", **config):
    config = {"model": model, "dataset": dataset, "seed": seed, **config}
    key = f"{experiment}-{'-'.join(map(str, config.values()))}-{data}"
    return {"experiment": experiment, "key": key, "config": config, "seed": seed,
            "data": {"label": dataset, "hash": data}, "metrics": {"test_accuracy": accuracy}}  # fmt: skip


@pytest.fixture
def page(tmp_path):
    """Render with these rows and this page: `page(rows, text, *options)` returns the page afterwards."""

    def call(rows, text, *options):
        for r in rows:
            with open(tmp_path / f"{r['experiment']}.jsonl", "a") as file:
                file.write(json.dumps(r) + "\n")
        readme = tmp_path / "README.md"
        readme.write_text(text)
        places = ["--root", tmp_path, "--results", tmp_path, "--figures", tmp_path / "figures"]
        tables.main([*map(str, places), *options])
        return readme.read_text()

    return call


def test_cell_is_mean_std_n_beside_the_published_number(page):
    text = page([row(seed=s, accuracy=a) for s, a in enumerate([0.81, 0.82, 0.83])], README)
    (line,) = [line for line in text.splitlines() if line.startswith("| gcn ")]
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["gcn", "82.0 +- 1.0 (3)", "81.5", "+0.5"]
    assert "Kipf and Welling 2017; public split" in text and "Data: Cora (h1)." in text and "The end." in text
    (gat,) = [line for line in text.splitlines() if line.startswith("| gat ")]
    assert "no rows yet" in gat and "83.0 +- 0.7" in gat


def test_no_difference_from_another_quantity_is_printed():
    table = dict(name="t", experiment="x", label="config.model", format=mean_std(100), caption="C", command="python c")
    table |= {"cells": one("config.dataset", "metrics.test_accuracy"), "labels": ("gcn",)}
    for comparable, shown in ((True, "+2.0"), (False, "-")):
        paper = Published("gcn", "Cora", 78.0, None, "A paper", "read in source", "other metric", comparable)
        text = render.render(Table(**table, published=(paper,)), [row()])
        (line,) = [line for line in text.splitlines() if line.startswith("| gcn ")]
        assert [cell.strip() for cell in line.strip("|").split("|")] == ["gcn", "80.0 (1)", "78.0", shown]
        assert "by `python c --official`" in text and "gcn Cora 78.0 (A paper; other metric; read in source)" in text


def test_no_rows_is_said(page):
    assert "*no rows yet: `python -m experiments.sweep citation --official`*" in page([], README)


def test_check_passes_on_what_was_written_and_writing_again_changes_nothing(page):
    once = page([row()], README)
    assert page([], once, "--check") == once and page([], once) == once


def test_check_rejects_a_number_edited_by_hand(page, capsys):
    """Negative control of the whole mechanism."""
    edited = page([row()], README).replace("80.0 (1)", "80.4 (1)")
    with pytest.raises(SystemExit, match=r"README\.md"):
        page([], edited, "--check")
    diff = capsys.readouterr().out.splitlines()
    assert any(x.startswith("-| gcn") and "80.4" in x for x in diff)
    assert any(x.startswith("+| gcn") and "80.0" in x for x in diff)


def test_check_rejects_a_page_older_than_its_rows_and_writes_nothing(page, tmp_path):
    old = page([row()], README)
    with pytest.raises(SystemExit, match=r"README\.md, citation\.png"):
        page([row(seed=1)], old, "--check")
    assert (tmp_path / "README.md").read_text() == old


def test_figure_is_drawn_from_the_rows_and_checked(page, tmp_path):
    curves = [row("cnn", "cifar", s, [0.1 * s, 0.2 + 0.1 * s], "cifar10_graph") for s in range(3)]
    page(curves, "no tables here\n")
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["cifar10_graph.png"]
    assert render.drawn_from(tmp_path / "figures" / "cifar10_graph.png") == render.fingerprint(curves)
    (tmp_path / "figures" / "cifar10_graph.png").unlink()
    with pytest.raises(SystemExit, match=r"cifar10_graph\.png"):
        page([], "no tables here\n", "--check")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table:nonsense -->\n<!-- /table:nonsense -->\n", "unknown table 'nonsense'"),
        ("<!-- table:citation -->\n", "never closed"),
        ("<!-- /table:citation -->\n", "does not pair up"),
        ("<!-- table:citation -->\n<!-- /table:overhead -->\n", "does not pair up"),
        ("<!-- table:citation -->\n<!-- table:citation -->\n<!-- /table:citation -->\n", "does not pair up"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--check"]])
def test_markers_that_are_wrong(page, text, message, options, tmp_path):
    with pytest.raises(SystemExit, match=message):
        page([], text, *options)
    assert (tmp_path / "README.md").read_text() == text


def test_duplicate_keys_are_an_error(page):
    with pytest.raises(SystemExit, match="occurs twice"):
        page([row(), row()], README)


@pytest.mark.parametrize("other", [row(seed=1, hidden=64), row(seed=1, data="h2")])
def test_a_cell_does_not_average_over_configurations_or_data(page, other):
    with pytest.raises(SystemExit, match=r"gcn, Cora: rows differ in (hidden|data\.hash)"):
        page([row(), other], README)


def test_where_and_vary_say_what_a_cell_may_hold():
    rows = [row(hidden=h, seed=s, accuracy=h / 100) for h in (16, 64) for s in (0, 1)]
    base = dict(name="t", experiment="citation", label="config.model", format=mean_std(100), caption="C", command="c")
    cells = one("config.dataset", "metrics.test_accuracy")
    assert "16.0 +- 0.0 (2)" in render.render(Table(**base, cells=cells, where=(("config.hidden", 16),)), rows)
    assert "40.0" in render.render(Table(**base, cells=cells, vary=("seed", "hidden")), rows)
    with pytest.raises(TableError, match="has no number"):
        render.render(Table(**base, cells=one("x", "metrics.absent"), vary=("seed", "hidden")), rows)


def test_words_stand_behind_the_numbers_and_must_agree():
    rows = [row(seed=s) | {"metrics": {"test_accuracy": 0.5, "said": "loops | added"}} for s in (0, 1)]
    table = Table(
        name="t", experiment="citation", label="config.model", cells=one("config.dataset", "metrics.test_accuracy"),
        format=mean_std(100), caption="C", command="c", labels=("gcn", "gat"), words=(("why", "metrics.said"),),
    )  # fmt: skip
    lines = render.render(table, rows).splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == ["model", "Cora", "why"]
    assert "50.0 +- 0.0 (2)" in lines[4] and r"loops \| added" in lines[4] and lines[5].count("no rows yet") == 2
    rows[1]["metrics"]["said"] = "loops kept"
    with pytest.raises(TableError, match=r"t, gcn: rows differ in metrics\.said"):
        render.render(table, rows)


def with_another_seed(experiment, where=()):
    """The committed rows, and the same of another seed, with other times."""
    rows = render.select(render.load(RESULTS, experiment), where)
    measured = sweep.experiment(experiment).measured if experiment in sweep.TABLES else ()
    more = copy.deepcopy([r for r in rows if "seed" in r["config"]])
    for r in more:
        r["key"] += "x"
        r["config"]["seed"] = r["seed"] = r["config"]["seed"] + 1000
        times = {name: r["metrics"][name] for name in measured if isinstance(r["metrics"].get(name), int | float)}
        r["metrics"] |= {name: 1.5 * value for name, value in times.items()}
    return rows + more


@pytest.mark.parametrize("table", tables.TABLES, ids=lambda table: table.name)
def test_a_further_seed_is_rendered(table):
    rows = with_another_seed(table.experiment)
    assert table.command in render.render(table, rows)


@pytest.mark.parametrize("name", sweep.TABLES)
def test_a_further_seed_is_reported(name, capsys):
    found = sweep.experiment(name)
    if rows := with_another_seed(found.name):
        found.report(rows)
        assert capsys.readouterr().out


@pytest.mark.parametrize("figure", tables.FIGURES, ids=lambda figure: figure.name)
def test_a_further_seed_is_drawn(figure):
    from matplotlib.figure import Figure

    figure.draw(Figure().subplots(), with_another_seed(figure.experiment, figure.where))


def test_rows_of_another_experiment_and_torn_lines_do_not_count(tmp_path):
    lines = [json.dumps(row()), json.dumps(row(experiment="other")), '{"key": "to']
    (tmp_path / "citation.jsonl").write_text("\n".join(lines))
    assert render.load(tmp_path, "citation") == [row()]


def test_missing_page_and_unknown_option_are_clear_errors(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"README\.md"):
        tables.main(["--root", str(tmp_path / "absent")])
    with pytest.raises(SystemExit) as stop:
        tables.main(["--chek"])
    assert stop.value.code == 2 and "--check" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--root", "--results", "--figures"])
@pytest.mark.parametrize("kind", ["absent", "file"])
def test_a_wrong_folder_leaves_the_pages_as_they_are(page, tmp_path, option, kind):
    """Without its rows, every table would become "no rows yet"."""
    text = page([row()], README)
    other = tmp_path / kind
    if kind == "file":
        other.write_text("")
    places = {"--root": tmp_path, "--results": tmp_path, "--figures": tmp_path / "figures", option: other}
    if option == "--figures" and kind == "absent":
        return tables.main([str(part) for pair in places.items() for part in pair])  # created
    with pytest.raises(SystemExit, match=f"^error: {option} {re.escape(str(other))} must be") as caught:
        tables.main([str(part) for pair in places.items() for part in pair])
    assert "\n" not in str(caught.value) and (tmp_path / "README.md").read_text() == text


def test_every_registered_table_and_figure_renders(tmp_path):
    metrics = {"test_accuracy": [0.5, 0.6], "max_error": 1e-9, "bare_ms": 1.0, "gconv_ms": 1.1, "ratio": 1.1}
    metrics |= {f"logit_{what}_float{bits}": 1e-7 for what in ("gap", "scale") for bits in (32, 64)}
    metrics |= {"ratio_low": 1.0, "ratio_high": 1.2, "peak_ratio": 0.3, "kernels": "c"}
    metrics |= {f"{who}_{when}": 9.0 for who in ("bare", "gconv", "peer") for when in ("peak_mb", "step_peak_mb")}
    metrics |= {"everything": 0.5, "plain": 0.0, "known": "run", "parts_on": "loop", "differs_in": "a", "in_gconv": "b"}
    metrics |= {f"faster{q}": 2.0 for q in ("", "_low", "_high")} | {"peer_ms": 2.0, "memory_share": 0.2}
    metrics |= {f"{who}_{unit}": 2.0 for who in ("gconv", "peer", "before", "after") for unit in ("mb", "s", "step_mb")}
    metrics |= {"usual_mb": 9.0, "floor_mb": 1.0} | dict.fromkeys(("usual_share", "floor_share", "results_share"), 0.1)
    metrics |= {"share": 0.1, "bytes": 1e6}
    metrics |= {"close": 0.0, "chosen": "native", "best": "fft", "order_ms": 9.0, "conv_ratio": 1.0}
    metrics |= {
        "ms": 2.0,
        "side": "gconv",
        "most": "torch.mm 60%",
        "rows": "as they come",
        "schedule": True,
        "before_ms": 2.0,
    }
    metrics |= {f"{way}_ratio": 1.0 for way in ("conv_training", "widened", "widened_training")}
    metrics |= dict.fromkeys(("border_accuracy", "gap", "multiply_adds", "uneven", "uneven_at_start", "least"), 0.5)
    metrics |= dict.fromkeys((*membrane.SCORES.values(), *bccd.SCORES.values(), *areas.SCORES.values()), 0.5)
    metrics |= dict.fromkeys(("test_bleu", "test_bleu_lower", "val_bleu"), 30.0)
    metrics |= {"test_signature": "nrefs:1", "test_samples": [["best", "a dog", "ein Hund", "ein Hund"]]}
    measured = (
        "peak_gb",
        "build_cpu_seconds",
        "build_seconds",
        "cpu_seconds",
        "seconds",
        "cpu_ns_an_edge",
        "error",
        "load",
    )
    metrics |= dict.fromkeys(measured, 1.0)
    metrics |= dict.fromkeys(("best_possible_mean_iou", "test_recall"), 0.5) | {"layers": 9, "converted": 9}
    metrics |= dict.fromkeys(("seconds_training", "parameters", "images_per_second"), 9)
    large = ("value", "gradient", "bits_per_byte", "error_of_mean", "memory_mb", "trained", "used", "perplexity")
    metrics |= dict.fromkeys(large, 1.0)
    fields = {
        "edges": 9,
        "channels": 9,
        "context": 9,
        "way": "all",
        "shots": 10,
        "method": "metis",
        "network": "pnet",
        "codes": 9,
        "seed": 0,
        "model": "gcn",
        "engine": "gconv",
        "dataset": "Cora",
        "task": "images",
        "operator": "cheb",
    }
    judged = dict.fromkeys(("pointing", "deletion", "insertion", "weights", "labels", "completeness"), 0.5)
    metrics |= dict.fromkeys((*cells.METHODS, *cells.CONTROLS), judged)
    fields |= {"dtype": "float64", "case": "conv", "group": "grids", "convention": "gcn: Kipf"}
    for table in tables.TABLES:
        config = fields | {path.removeprefix("config."): value for path, value in table.where}
        single = table.cells.__qualname__.startswith("one")
        r = row(experiment=table.experiment) | {"metrics": metrics, "config": config}
        if single or table.name in (
            "ladder",
            "studies",
            "superpixels",
            "pixel_operators",
            "anchor",
            "jpeg",
            "data_parallel",
            "overfitting",
            "multiply_adds",
            "checkerboard",
            "finetune",
        ):
            r["metrics"] = metrics | {
                "test_accuracy": 0.6,
                "network": "9",
                "parameters": 9,
                "most": 2.0,
                "six_views": 0.6,
            }
        assert "no rows yet: `" not in render.render(table, [r]), table.name
    assert len({t.name for t in tables.TABLES}) == len(tables.TABLES)
    for figure in tables.FIGURES:
        curve = figure.draw.__qualname__.startswith("lines")
        r = row() | {"metrics": {"test_accuracy": [0.1, 0.2] if curve else 0.5, "network": "9"}, "config": fields}
        r["metrics"] |= {"picture": 8 * "01", "val_loss": [3.0, 2.0]}
        if figure.experiment in ("bert", "finetune", "language_model", "long_context"):
            r["config"] = fields | {"dataset": "TREC", "model": "convolution", "tokens": 512}
        if figure.name == "dvae":
            r["metrics"]["picture"] = 32 * 32 * 3 * "01"
        r["metrics"] |= {"border_accuracy": 0.5, "train_accuracy": [0.4, 0.5], "val_accuracy": [0.3, 0.4]}
        r["metrics"] |= {"memory_mb": 9, "trained": 9, "by_position": [8.0, 4.0], "cpu_seconds": 1.0}
        if figure.name == "detection":
            picture = bccd.thumbnail(torch.zeros(3, 16, 16, dtype=torch.uint8))
            r["config"] = fields | {"model": "grid"}
            r["metrics"] |= {"photos": [picture], "boxes": [[[1, 1, 9, 9, 0, 0.5]]]}
        if figure.name == "cells":
            photo = torch.zeros(3, 16, 16, dtype=torch.uint8)
            r["metrics"] |= {"pictures": 2 * [areas.picture(photo, torch.zeros(16, 16, dtype=torch.int64))]}
        if figure.name == "pretrained":
            r["metrics"] |= {"test_recall": 0.5}
        if figure.experiment == "interpretability":
            r["config"] = fields | {"model": "cnn"}
            kernels = {"kernels": [[[[0.5] * 5] * 5] * 3] * 2, "response": [[[1.0] * 9] * 9] * 2}
            r["metrics"] |= {"maps": [["00" * cells.SHOWN**2] * 6] * 2, "filters": kernels}
        render.paint(figure, [r], tmp_path / f"{figure.name}.png")
        assert render.drawn_from(tmp_path / f"{figure.name}.png") == render.fingerprint([r])


def test_published_numbers_name_their_source_and_how_they_are_known():
    for p in (*CITATION, *CITATION_RERUNS):
        assert p.source and p.protocol and p.how.startswith(("read in source", "quoted in", "from memory")), p
        assert 0 < p.value < 100
    assert len({(p.row, p.column) for p in CITATION}) == len(CITATION)


def test_published_number_without_the_row_is_not_listed():
    paper = (
        Published("gcn", "Cora", 81.5, None, "A", "read in source"),
        Published("gcnii", "Cora", 85.5, None, "B", ""),
    )
    table = Table(
        name="t", experiment="e", label="config.model", cells=one("config.dataset", "metrics.test_accuracy"),
        format=mean_std(100), caption="C", command="c", published=paper,
    )  # fmt: skip
    text = render.render(table, [row()])
    assert "(A; " in text and "85.5" not in text


def test_last_takes_the_end_of_a_curve():
    assert last("metrics.test_accuracy")(row(accuracy=[0.1, 0.4])) == {"last epoch": 0.4}


def test_pages_of_the_repository_say_what_the_rows_say():
    tables.main(["--check"])


@pytest.mark.parametrize("shown", [*tables.TABLES, *tables.FIGURES], ids=lambda shown: f"{shown.name}")
def test_a_table_with_rows_shows_some_of_them(shown):
    """A wrong `where` leaves a table empty, and its page then says that there are no rows yet."""
    rows = render.load(tables.RESULTS, shown.experiment)
    assert render.select(rows, shown.where) or not rows


def test_every_table_stands_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in tables.pages(tables.ROOT))
    assert [t.name for t in tables.TABLES if text.count(f"\n<!-- table:{t.name} -->\n") != 1] == []


def test_pages_under_docs_are_rendered_too(page, tmp_path):
    other = tmp_path / "docs" / "results" / "citation.md"
    other.parent.mkdir(parents=True)
    other.write_text(README)
    page([row()], "no tables here\n")
    assert "| gcn" in other.read_text()
    other.write_text(other.read_text().replace("80.0 (1)", "80.4 (1)"))
    with pytest.raises(SystemExit, match=r"docs/results/citation\.md"):
        page([], "no tables here\n", "--check")


def test_text_outside_markers_is_kept():
    text = "a\n`<!-- table:x -->` in a sentence is no marker\n"
    assert fill(text, tables.RESULTS, tables.TABLES) == text


def test_a_table_below_its_protocol_is_an_error_unless_it_says_so():
    table = Table(name="t", experiment="e", label="config.model", cells=one("acc", "metrics.acc"), format=mean_std(),
                  caption="", command="python -m x", n=2)  # fmt: skip
    rows = [{"key": "1", "config": {"model": "a", "seed": 0}, "metrics": {"acc": 1.0}}]
    with pytest.raises(TableError, match="table t, a: 1 rows, and the protocol has 2"):
        render.render(table, rows)
    text = render.render(replace(table, unfinished=("a",)), rows)
    assert "Unfinished, with the number of rows so far (of 2): a (1); `python -m x --official` runs the rest." in text
    more = [*rows, {"key": "2", "config": {"model": "a", "seed": 1}, "metrics": {"acc": 2.0}}]
    assert "Unfinished" not in render.render(table, more)


def test_rows_of_other_code_do_not_share_a_cell():
    table = Table(name="t", experiment="e", label="config.model", cells=one("acc", "metrics.acc"), format=mean_std(),
                  caption="", command="")  # fmt: skip
    rows = [
        {"key": str(seed), "config": {"model": "a", "seed": seed}, "metrics": {"acc": 1.0}, "code": {"hash": code}}
        for seed, code in enumerate("xy")
    ]
    with pytest.raises(TableError, match=r"rows differ in code\.hash \(x and y\)"):
        render.render(table, rows)


def test_the_ladders_picture_shows_every_network():
    from matplotlib.figure import Figure

    from experiments.report import ladder

    names = ("9", "1", "pointwise", "3, last", "p4")
    rows = [{"metrics": {"network": name, "test_accuracy": 0.5 + i / 10}} for i, name in enumerate(names)]
    axes = Figure().subplots()
    ladder.draw(axes, rows)
    assert {"all stages", "3, last", "p4"} <= {text.get_text() for text in axes.get_legend().get_texts()}
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([70, 60, 50])


def test_the_ladder_says_what_isotropic_stages_cost():
    from experiments.report.ladder import sentences

    accuracies = {"9": 0.9, "3": 0.5} | {f"3, {n}{p}": 0.8 for n in ("", "not ") for p in ("first", "middle", "last")}
    rows = [{"metrics": {"network": name, "test_accuracy": y}} for name, y in accuracies.items()]
    rows += [{"metrics": {"network": "3, first", "test_accuracy": 0.7}}]  # a second seed
    (said,) = sentences(rows)
    assert "15.0 (only in the first), 10.0 (only in the middle)" in said and said.endswith("40.0 (all).")
    assert sentences(rows[1:]) == []
