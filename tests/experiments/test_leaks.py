"""No experiment learns, normalises or selects by its test data: with others, all numbers but the scores are the same.

The other labels are such that the score of a network that finds one class only changes, too.
"""

import functools
import importlib
import inspect
from dataclasses import replace

import pytest
import torch

from datasets.multi30k import Pairs
from experiments import sweep
from experiments.harness import fit
from experiments.harness.experiment import Place
from experiments.segmentation import membrane


def photos(data, part):
    rows = list(data.parts[part])
    images = data.images.clone()
    images[rows] = 255 - images[rows]
    kinds = tuple((kind + 1) % 3 if i in rows else kind for i, kind in enumerate(data.kinds))
    return replace(data, images=images, kinds=kinds)


def slices(data, part):
    rows = list(getattr(membrane.split(len(data.images)), part))
    images, masks = data.images.clone(), data.masks.clone()
    images[rows], masks[rows] = 255 - images[rows], ~masks[rows]
    return replace(data, images=images, masks=masks)


def texts(data, part):
    rows = data.test if part == "test" else ~data.test
    documents = [tuple(f"{word}'" for word in d) if r else d for d, r in zip(data.documents, rows, strict=True)]
    labels = torch.where(rows, 0, data.labels)
    return replace(data, documents=tuple(documents), labels=labels)


def task(data, part):
    """Random images for training are of the even classes, those for testing of the odd ones."""
    images, labels = getattr(data, part)
    return data._replace(**{part: fit.Split(255 - images, labels - labels % (2 if part == "test" else 10))})


def both_tasks(data, part):
    names = ("test",) if part == "test" else ("old", "new")
    return data._replace(**{name: (-x, 0 * y) for name in names for x, y in [getattr(data, name)]})


def crops(data, part):
    images, labels = getattr(data, part)
    return data._replace(**{part: type(data.train)(255 - images, 0 * labels)})


def numbers(data, part):
    return data._replace(**{part: getattr(data, part).flip(-1)})


def sentences(data, part):
    source, target = getattr(data, part)
    return replace(data, **{part: Pairs(tuple(f"{s}{s}" for s in source), tuple(t[::-1] for t in target))})


LOSSES = {"train_loss", "val_loss"}
CASES = {  # table -> (functions that load its data, the change of a part, numbers that do not depend on the test data)
    "text": (("text.classify.texts",), texts, LOSSES | {"val_accuracy", "epoch", "epochs_run", "parameters"}),
    "bert": (("large.bert.texts",), texts, LOSSES | {"val_accuracy", "epoch", "epochs_run", "trained"}),
    "membrane": (("segmentation.membrane.slices",), slices, LOSSES | {"step", "threshold"}),
    "cells": (("segmentation.cells.photos",), photos, {"train_loss", "val_mean_iou"}),
    "detection": (("detection.bccd.photos",), photos, {"train_loss", "val_ap50", "val_ap"}),
    "interpretability": (("interpretability.cells.pictures",), photos, {"train_loss"}),
    "translation": (
        ("translation.train.corpus", "translation.corpus.corpus"),
        sentences,
        LOSSES | {"epoch", "val_bleu"},
    ),
    "language_model": (("large.language_model.text",), numbers, {"train_bits", "val_bits_per_byte"}),
    "dvae": (("large.dvae.pixels",), numbers, {"train_loss"}),
    "finetune": (("large.finetune.images",), both_tasks, {"train_loss"}),
    "pretrained": (("large.pretrained_convolutions.cells",), crops, {"train_loss"}),
    "superpixels": (("images.superpixels.task",), task, {"train_loss", "width"}),
    "overfitting": (("images.overfitting.task",), task, {"train_accuracy", "val_accuracy", "gap", "epoch"}),
    "ladder": (("images.ladder.task",), task, {"train_loss"}),
    "studies": (("images.studies.task",), task, {"train_loss"}),
    "pixel_operators": (("images.ladder.task",), task, {"train_loss"}),
    "anchor": (("images.anchor.task",), task, {"train_loss"}),
    "jpeg": (("images.jpeg.task",), task, {"train_loss"}),
}
TRANSDUCTIVE = ("textgcn", "sgc")  # the words of the test documents are in the graph
NOTHING_LEARNED = {"multiply_adds", "checkerboard", "conversions", "long_context", "external", "halo_rows", "int8"}


def forget(table):
    """Empty the caches of the modules of an experiment: data and what was made of them."""
    for path in CASES[table][0]:
        for _, value in inspect.getmembers(importlib.import_module(f"experiments.{path.rpartition('.')[0]}")):
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def measured(table, config, part):
    """The numbers of a run whose data are changed in one part."""
    functions, change, kept = CASES[table]
    found = sweep.experiment(table)
    forget(table)
    with pytest.MonkeyPatch.context() as patch:
        for path in functions:
            original = importlib.import_module(f"experiments.{path.rpartition('.')[0]}")
            load = getattr(original, path.rpartition(".")[2])

            def changed(*args, load=load, **options):
                data = load(*args, **options)
                return change(data, part) if part else data

            patch.setattr(f"experiments.{path}", functools.cache(changed))
        metrics = found.run(config, Place(device="cpu")).metrics
    forget(table)
    assert kept <= metrics.keys()
    return {name: metrics[name] for name in kept}, {
        name: value for name, value in metrics.items() if name not in kept.union(found.measured)
    }


@pytest.mark.sampled(3)
@pytest.mark.parametrize("table", CASES)
def test_only_the_test_scores_depend_on_the_test_data(table):
    pytest.importorskip("transformers") if table == "bert" else None
    found = sweep.experiment(table)
    images = {"limit": 20} if "limit" in found.smoke else {}  # of every class
    configs = found.expand(replace(found.config(), **{**found.smoke, **images}), 1)
    for config in [c for c in configs if getattr(c, "model", "") not in TRANSDUCTIVE][:2]:
        whole, scores = measured(table, config, "")
        with_other_test_data, other_scores = measured(table, config, "test")
        with_other_training_data, _ = measured(table, config, "train")
        assert measured(table, config, "")[0] == whole, "a seed repeats"
        assert measured(table, replace(config, seed=config.seed + 1), "")[0] != whole, "another seed is another run"
        assert with_other_test_data == whole
        assert with_other_training_data != whole, "the control: training data matter"
        assert other_scores != scores, "the control: scores are those of the test data"


def test_every_experiment_that_learns_is_checked():
    """Citation networks are transductive, and their test labels are checked in test_citation."""
    learning = {table for table in sweep.TABLES if not table.startswith("citation")} - NOTHING_LEARNED
    assert learning == set(CASES)
