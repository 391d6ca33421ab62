"""Commands that answer with a trained network: a photo, a question or a graph in, an answer and a picture out."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

import gconv
from experiments.citation import networks
from experiments.citation import predict as papers
from experiments.harness import predicting
from experiments.large import predict as images
from experiments.large.finetune import network
from experiments.segmentation import predict as areas
from experiments.segmentation.cells import ColourUNet, Config
from experiments.text import predict as questions
from experiments.translation import predict as sentences

KNOWN, CLASSES = ["city", "far", "how", "is", "where", "who"], ["LOC", "NUM"]
TINY = questions.Config("kim", "TREC", width=4, hidden=4, dropout=0.5)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small network of each kind, with random weights, as a file."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    found = {name: folder / f"{name}.safetensors" for name in ("images", "cells", "questions", "papers")}
    predicting.written(network(images.WIDTH, 10), found["images"])
    predicting.written(ColourUNet(Config().width), found["cells"])
    predicting.written(networks.Network(papers.SMALL, papers.WORDS, 7), found["papers"])
    text = {"format": questions.FORMAT, "config": {**vars(TINY)}, "words": KNOWN, "classes": CLASSES}
    model = questions.OnWords(TINY, questions.reading(KNOWN, CLASSES))
    predicting.written(model, found["questions"], text)
    return found


def refused(main, arguments, says):
    """Whether a command ends in one sentence."""
    with pytest.raises(SystemExit, match=says) as caught:
        main([str(a) for a in arguments])
    assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)


PHOTOS = {"images": images, "cells": areas}


# -- photos --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize(
    ("mode", "size"), [("RGB", (64, 48)), ("L", (37, 61)), ("RGBA", (300, 20)), ("I;16", (33, 40))]
)
def test_photos_of_any_size_mode_and_depth_are_answered(name, mode, size, files, tmp_path, capsys):
    photo, out = tmp_path / "photo.png", tmp_path / "out.png"
    Image.new(mode, size).save(photo)
    PHOTOS[name].main([str(photo), "--checkpoint", str(files[name]), "--out", str(out)])
    assert "%" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert name == "images" or picture.size == size


@pytest.mark.parametrize("name", PHOTOS)
def test_what_is_no_photo_is_one_sentence(name, files, tmp_path, capsys):
    main, photo, out = PHOTOS[name].main, tmp_path / "photo.png", tmp_path / "out.png"
    rest = ["--checkpoint", files[name], "--out", out]
    refused(main, [photo, *rest], "cannot be read")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(photo)
    whole = photo.read_bytes()
    photo.write_bytes(whole[: len(whole) // 2])
    refused(main, [photo, *rest], "is damaged|is no photo")
    photo.write_bytes(b"text")
    refused(main, [photo, *rest], "is no photo")
    for size, says in (((4, 4), "too small"), ((2000, 30), "too narrow")):
        Image.new("RGB", size).save(photo)
        refused(main, [photo, *rest], says)
    photo.write_bytes(whole)
    refused(main, [photo, "--checkpoint", files["papers"]], "papers.safetensors")  # of another network
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(files[name].read_bytes()[:3000])
    refused(main, [photo, "--checkpoint", damaged], "damaged.safetensors")
    refused(main, [photo, "--checkpoint", tmp_path / "none.safetensors"], "none.safetensors")
    refused(main, [photo, *rest[:2], "--out", tmp_path / "none" / "out.png"], "none")
    assert not out.exists()
    with pytest.raises(SystemExit):
        main([str(photo), "--out", "areas.txt"])
    assert "must end in .png or .jpg" in "".join(capsys.readouterr())


def test_areas_are_in_the_photos_own_pixels(files):
    model = areas.restored(files["cells"])
    model.last = torch.nn.Identity()
    model.back_one = torch.nn.Identity()
    model.forward = lambda x: torch.cat([-x[:, :1], x[:, :1], x.new_full((1, 2, *x.shape[-2:]), -9.0)], 1)
    photo = torch.zeros(3, 90, 322, dtype=torch.uint8)
    photo[:, :, 161:] = 255
    found = areas.predict(model, photo)
    assert found.shape == (90, 322) and not found[:, :155].any() and found[:, 167:].all()


def test_a_photo_without_cells_is_said(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(areas, "predict", lambda model, photo: torch.zeros(photo.shape[-2:], dtype=torch.int64))
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    areas.main([str(tmp_path / "photo.png"), "--checkpoint", str(files["cells"])])
    assert "no cells found" in capsys.readouterr().out


def test_images_are_seen_in_the_middle():
    photo = torch.zeros(3, 64, 128, dtype=torch.uint8)
    photo[:, :, 32:96] = 200
    assert (images.square(photo) == 200).all() and images.square(photo).shape == (3, 32, 32)


# -- questions -----------------------------------------------------------------------------------------------------


def test_questions_are_answered_word_by_word(files, tmp_path, capsys):
    out = tmp_path / "words.png"
    questions.main(["How far is the city?", "--checkpoint", str(files["questions"]), "--out", str(out)])
    said = capsys.readouterr()
    assert "a place" in said.out and "a number" in said.out and "unknown to the network: the" in said.err
    assert out.read_bytes().startswith(b"\x89PNG")
    model, known, _ = questions.load(files["questions"])
    found, raises = questions.predict(model, ("how", "the", "far"), known)
    alone, _ = questions.predict(model, ("how", "the", "the"), known)
    best = int(found.argmax())
    torch.testing.assert_close(raises[2], found[best] - alone[best])
    assert abs(raises[1].item()) < 1e-6 and found.sum().item() == pytest.approx(1)


def test_typographic_quotation_marks_are_plain_ones():
    assert questions.words_of("Who didn\u2019t like \u201cHamlet\u2019s\u201d cafe\u0301?") == questions.words_of(
        "Who didn't like \"Hamlet's\" caf\u00e9?"
    )
    assert questions.words_of("a `b`") != questions.words_of("a 'b'")


def test_a_character_that_the_font_lacks_prints_no_warning(files, tmp_path, recwarn):
    out = tmp_path / "words.png"
    questions.main(["\U0001f436 how far?", "--checkpoint", str(files["questions"]), "--out", str(out)])
    assert out.stat().st_size and not [w for w in recwarn if "Glyph" in str(w.message)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (" \t\n", "is empty"),
        ("狗 is", "'狗', which is not Latin"),
        ("xyz abc?", "no word that the network knows"),
        ("? ! .", "no word that the network knows"),
        ("how far " * 100, "has 200 words, at most 100 are read"),
        ("b" * 100_000, "100,000 characters"),
    ],
)
def test_questions_that_cannot_be_read_are_one_sentence(files, text, says):
    refused(questions.main, [text, "--checkpoint", files["questions"]], says)


def test_files_of_questions_that_are_none_of_ours(files, tmp_path):
    path = tmp_path / "q.safetensors"
    whole = json.loads(files["questions"].with_suffix(".json").read_text())
    path.write_bytes(files["questions"].read_bytes())
    for change, says in (
        ({"format": "gconv text 0"}, "format 'gconv text 0'"),
        ({"config": {**whole["config"], "width": 5}}, "does not fit"),
        ({"config": {"colour": 1}}, "no network of this version"),
        ({"words": ["b", "a"]}, "not sorted"),
        ({"words": ["a", "b"]}, "does not fit"),
        ({"classes": 3}, "no network of this version"),
    ):
        path.with_suffix(".json").write_text(json.dumps({**whole, **change}))
        refused(questions.main, ["how", "--checkpoint", path], says)
    path.with_suffix(".json").write_text("{")
    refused(questions.main, ["how", "--checkpoint", path], "not the description")
    path.unlink()
    refused(questions.main, ["how", "--checkpoint", path], "there is no checkpoint")


def test_words_of_a_network_are_those_it_was_trained_on(tmp_path, capsys):
    data = questions.texts("random")
    path = tmp_path / "t.safetensors"
    questions.learn(questions.Options(checkpoint=path), replace(TINY, dataset="random", epochs=2, patience=1))
    assert "test documents" in capsys.readouterr().out
    document = data.documents[70]
    model, known, classes = questions.load(path, [document])
    trained = questions.OnWords(replace(TINY, dataset="random"), data)
    gconv.load(path, into=trained.half())
    trained = trained.float().eval()
    assert known == questions.known_words(data) and classes == list(data.classes)
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([1])), trained(torch.tensor([70])))


# -- graphs --------------------------------------------------------------------------------------------------------


def graph_file(path, **change):
    """A graph of four papers, changed."""
    x = torch.zeros(4, papers.WORDS)
    x[[0, 1, 2], [3, 4, 5]] = 1
    tensors = {"edge_index": torch.tensor([[0, 1, 2], [1, 2, 0]]), "x": x} | change
    path.write_bytes(save({name: value for name, value in tensors.items() if value is not None}))
    return path


def test_graphs_are_answered_with_a_picture_and_a_table(files, tmp_path, capsys):
    out, table = tmp_path / "p.png", tmp_path / "p.csv"
    path = graph_file(tmp_path / "g.safetensors")
    papers.main([str(path), "--checkpoint", str(files["papers"]), "--out", str(out), "--table", str(table)])
    said = capsys.readouterr()
    assert out.read_bytes().startswith(b"\x89PNG") and len(table.read_text().splitlines()) == 5
    assert "papers" in said.out and "classified only by their citations: 1" in said.err
    alone = graph_file(tmp_path / "one.safetensors", x=torch.ones(1, papers.WORDS),
                       edge_index=torch.zeros(2, 0, dtype=torch.int64))  # fmt: skip
    papers.main([str(alone), "--checkpoint", str(files["papers"]), "--out", str(out)])


def test_all_edges_of_the_picture_are_one_collection(files, tmp_path, monkeypatch):
    """One line of matplotlib for each edge takes minutes on Cora."""
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **how: drawn.append(figure.axes[0]))
    found = papers.read_graph(graph_file(tmp_path / "g.safetensors"))
    scores = torch.arange(28.0).reshape(4, 7).square()
    papers.draw(scores, found, tmp_path / "p.png")
    edges, *dots = drawn[0].collections
    assert len(edges.get_segments()) == 3 and len(dots) == len(papers.SUBJECTS) and not drawn[0].lines
    where = {tuple(place) for dot in dots for place in dot.get_offsets().tolist()}
    assert {tuple(end) for segment in edges.get_segments() for end in segment.tolist()} <= where


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": None}, "has no x"),
        ({"x": torch.zeros(4, 7)}, r"x has shape \(4, 7\)"),
        ({"x": torch.full((4, papers.WORDS), torch.nan)}, "negative or not finite"),
        ({"x": torch.zeros(4, papers.WORDS, dtype=torch.complex64)}, "x has complex numbers"),
        ({"edge_index": torch.zeros(3, 2, dtype=torch.int64)}, r"edge_index has shape \(3, 2\)"),
        ({"edge_index": torch.zeros(2, 2)}, "torch.float32"),
        ({"edge_index": torch.tensor([[0], [9]])}, "names paper 9, and there are papers 0 to 3"),
    ],
)
def test_graphs_that_cannot_be_read_are_one_sentence(files, tmp_path, change, says):
    refused(papers.main, [graph_file(tmp_path / "g.safetensors", **change), "--checkpoint", files["papers"]], says)


def test_files_that_are_no_graph_are_one_sentence(files, tmp_path):
    path = graph_file(tmp_path / "g.safetensors")
    path.write_bytes(path.read_bytes()[:500])
    refused(papers.main, [path, "--checkpoint", files["papers"]], "damaged")
    refused(papers.main, [tmp_path / "none", "--checkpoint", files["papers"]], "^error: [^ ]*none cannot be read")
    refused(papers.main, ["--checkpoint", files["papers"]], "give a graph file")
    refused(papers.main, [graph_file(path), "--checkpoint", files["images"]], "images.safetensors")


# -- output files --------------------------------------------------------------------------------------------------


def test_outputs_are_checked_before_the_work(tmp_path, monkeypatch):
    def work(*_, **__):
        raise AssertionError("the work began")

    for module, name in ((papers, "read_graph"), (papers, "load"), (papers, "load_planetoid"), (areas, "restored"),
                         (images, "restored"), (images, "load_cifar10"), (questions, "load"), (questions, "texts"),
                         (sentences, "load"), (sentences, "corpus")):  # fmt: skip
        monkeypatch.setattr(module, name, work)
    (tmp_path / "text").write_text("")
    (tmp_path / "folder.png").mkdir()
    none, under, folder = tmp_path / "none" / "x.png", tmp_path / "text" / "x.png", tmp_path / "folder.png"
    for path, says in ((none, "there is no folder"), (under, "text is not a folder"), (folder, "is a folder; give")):
        refused(papers.main, ["g", "--out", path], says)
        refused(papers.main, ["g", "--table", path], says)
        refused(papers.main, ["--example", path], says)
        refused(areas.main, ["p.jpg", "--out", path], says)
        refused(images.main, ["p.jpg", "--out", path], says)
        refused(questions.main, ["how", "--out", path], says)
        refused(sentences.main, ["how", "--picture", path], says)
    for main in (papers.main, images.main, questions.main, sentences.main):
        refused(main, ["--train", "--checkpoint", under], "text is not a folder")
        refused(main, ["--train", "--checkpoint", folder], "is a folder; give")
        with pytest.raises(AssertionError, match="the work began"):  # the folder is created when the file is written
            main(["--train", "--checkpoint", str(none)])
    for main, given in ((papers.main, "g"), (areas.main, "p"), (images.main, "p"), (questions.main, "how"),
                        (sentences.main, "how")):  # fmt: skip
        refused(main, [given, "--checkpoint", ""], r"--checkpoint \. is a folder")
    for main in (questions.main, sentences.main):
        refused(main, ["--train", "--checkpoint", tmp_path / "x.json"], "is the name of the description")
        folder.with_suffix(".json").mkdir(exist_ok=True)
        refused(main, ["--train", "--checkpoint", tmp_path / "folder.safetensors"], "folder.json is a folder")


def test_an_output_that_is_an_input_is_refused(files, tmp_path):
    photo, graph = tmp_path / "photo.png", graph_file(tmp_path / "g.safetensors")
    Image.new("RGB", (40, 30)).save(photo)
    (tmp_path / "link.png").symlink_to(photo)
    before = photo.read_bytes(), graph.read_bytes()
    for out in (photo, tmp_path / "." / "photo.png", tmp_path / "link.png"):
        refused(areas.main, [photo, "--checkpoint", files["cells"], "--out", out], "would replace .*photo.png")
        refused(images.main, [photo, "--checkpoint", files["images"], "--out", out], "would replace .*photo.png")
    for table in (graph, files["papers"]):
        refused(papers.main, [graph, "--checkpoint", files["papers"], "--table", table], "--table .* would replace")
    both = ["--out", tmp_path / "a.png", "--table", tmp_path / "none" / ".." / "a.png"]
    refused(papers.main, [graph, "--checkpoint", files["papers"], *both], "--table .* would replace")
    assert (photo.read_bytes(), graph.read_bytes()) == before
    papers.main([str(graph), "--checkpoint", str(files["papers"]), "--table", "/dev/null"])
    refused(
        papers.main, [graph, "--checkpoint", files["papers"], "--table", "/dev/full"], "/dev/full cannot be written: No"
    )


@pytest.mark.parametrize("change", [{"width": 10**12}, {"hidden": 10**8}, {"width": 5}])
def test_a_description_of_more_weights_than_the_file_has_allocates_none(change, files, tmp_path):
    path = tmp_path / "q.safetensors"
    path.write_bytes(files["questions"].read_bytes())
    text = json.loads(files["questions"].with_suffix(".json").read_text())
    text["config"] |= change
    path.with_suffix(".json").write_text(json.dumps(text))
    says = "does not fit" if change == {"width": 5} else "describes no network of this version .it does not fit"
    refused(questions.main, ["how far", "--checkpoint", path], says)


def test_words_counted_near_the_largest_number_are_words(files, tmp_path, capsys):
    path = tmp_path / "g.safetensors"
    edges = torch.tensor([[0], [1]])
    answers = []
    for count in (1.0, 3e38):
        path.write_bytes(save({"edge_index": edges, "x": torch.full((2, papers.WORDS), count)}))
        answers.append(papers.read_graph(path).x)
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize(
    ("main", "arguments", "says"),
    [
        (papers.main, ["g", "--train"], "--train goes without a graph"),
        (papers.main, ["--train", "--example", "x", "--out", "x.png"], "--train goes without --out and --example"),
        (papers.main, ["--example", "x", "--table", "y"], "--example goes without --table"),
        (papers.main, ["g", "--out", "x.png", "--table", "x.png"], "--out and --table both name x.png"),
        (images.main, ["p.jpg", "--train"], "--train goes without a photo"),
        (questions.main, ["how", "--train"], "--train goes without a question"),
        (sentences.main, ["how", "--train"], "--train goes without sentences"),
        (sentences.main, ["how", "--picture", "x.txt"], "--picture must end in .png"),
    ],
)
def test_options_that_exclude_each_other(main, arguments, says, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code and says in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_link_to_a_file_that_does_not_exist_yet_is_followed(files, tmp_path, capsys):
    """The format is that of the given name, since the target of a link may have another ending."""
    photo, out, target = tmp_path / "photo.png", tmp_path / "out.png", tmp_path / "target"
    Image.new("RGB", (40, 30)).save(photo)
    out.symlink_to(target)
    for main, name in ((images.main, "images"), (areas.main, "cells")):
        target.unlink(missing_ok=True)
        main([str(photo), "--checkpoint", str(files[name]), "--out", str(out)])
        assert out.is_symlink() and target.read_bytes().startswith(b"\x89PNG")


def test_a_file_that_is_not_finished_is_not_left(files, tmp_path, monkeypatch):
    out, graph = tmp_path / "p.png", graph_file(tmp_path / "g.safetensors")
    out.write_text("before")

    def stopped(scores, found, path):
        path.write_text("half")
        raise OSError("the disk is full")

    monkeypatch.setattr(papers, "draw", stopped)
    refused(papers.main, [graph, "--checkpoint", files["papers"], "--out", out], "p.png cannot be written: the disk is")
    assert out.read_text() == "before" and sorted(p.name for p in tmp_path.iterdir()) == ["g.safetensors", "p.png"]


# -- the committed networks ----------------------------------------------------------------------------------------


def test_committed_networks_are_small_and_answer(tmp_path, capsys):
    for name in ("images", "cells", "papers", "questions"):
        path = predicting.FOLDER / f"{name}.safetensors"
        both = [p for p in (path, path.with_suffix(".json")) if p.is_file()]
        assert path in both and sum(p.stat().st_size for p in both) <= 1e6, name
    questions.main(["Who wrote Hamlet?"])
    assert capsys.readouterr().out.startswith("a person")
    questions.main(["How far is the moon from the earth?"])
    assert capsys.readouterr().out.startswith("a number")
    Image.new("RGB", (320, 240), (225, 215, 220)).save(tmp_path / "empty.png")
    areas.main([str(tmp_path / "empty.png")])
    images.main([str(tmp_path / "empty.png")])
    papers.main([str(graph_file(tmp_path / "g.safetensors"))])
    assert "papers" in capsys.readouterr().out
