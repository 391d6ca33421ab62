"""The data root, downloads, errors, hashes, and the way in: `load` and `python -m datasets`."""

import errno
import gc
import http.server
import os
import socket
import socketserver
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from limits import fresh, joined, started

import datasets
from datasets import multi30k, root, text

ROOM = Path(datasets.__file__).parents[1]


@contextmanager
def server(folder, silent=False):
    """Serve `folder` on the local machine, or accept and never answer."""
    if silent:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        return

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def server_bind(self):  # http.server's asks for the name of the machine, and may wait long for it
            socketserver.TCPServer.server_bind(self)

    with Server(("127.0.0.1", 0), Handler) as httpd:
        thread = started(httpd.serve_forever, 0.02)
        try:
            yield f"http://127.0.0.1:{httpd.server_address[1]}/"
        finally:
            httpd.shutdown()
            joined([thread])


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("GCONV_OFFLINE", raising=False)


def get(url, folder, files=("a.bin", "b.bin"), known=None):
    """`ensure` with a download of each missing file from url."""

    def download(scratch, missing):
        for file in missing:
            root.fetch(url + file, scratch, (known or {}).get(file))
        return scratch

    return root.ensure("Toy", folder, files, url, download, "use 'karate'")


@pytest.fixture
def remote(tmp_path):
    folder = tmp_path / "remote"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"alpha")
    (folder / "b.bin").write_bytes(b"beta")
    return folder


def everything_under(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_root_prefers_argument_then_environment_then_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GCONV_DATA", str(tmp_path / "env"))
    assert root.data_root(tmp_path / "arg") == tmp_path / "arg"
    assert root.data_root() == tmp_path / "env"
    monkeypatch.setenv("GCONV_DATA", "")
    assert root.data_root().name == "gconv"
    assert root.data_root("~/x") == Path.home() / "x"


def test_present_files_are_used_without_network(monkeypatch, remote):
    monkeypatch.setenv("GCONV_OFFLINE", "1")
    assert [p.read_bytes() for p in get("http://unreachable.invalid/", remote)] == [b"alpha", b"beta"]


def test_download_fetches_only_what_is_missing_and_leaves_no_scratch(remote, tmp_path):
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"mine")
    with server(remote) as url:
        paths = get(url, folder)
    assert [p.read_bytes() for p in paths] == [b"mine", b"beta"]
    assert everything_under(folder) == ["a.bin", "b.bin"]


@pytest.mark.parametrize("flag", ["1", "true", "yes"])
def test_offline_is_one_error_that_says_everything(monkeypatch, tmp_path, flag):
    monkeypatch.setenv("GCONV_OFFLINE", flag)
    folder = tmp_path / "deep" / "local"
    with pytest.raises(root.DataUnavailable) as caught:
        get("https://example.org/", folder)
    said = str(caught.value)
    facts = ("Toy", "a.bin, b.bin", str(folder), "https://example.org/", "GCONV_OFFLINE", "--data-root", "GCONV_DATA")
    for fact in (*facts, "'karate'"):
        assert fact in said
    assert everything_under(tmp_path) == []


def test_offline_zero_means_online(monkeypatch):
    monkeypatch.setenv("GCONV_OFFLINE", "0")
    assert not root.offline()


def test_wrong_checksum_keeps_nothing(remote, tmp_path):
    with server(remote) as url, pytest.raises(root.DataUnavailable, match="hash"):
        get(url, tmp_path / "local", known={"b.bin": "sha256:" + "0" * 64})
    assert not (tmp_path / "local").exists()


def test_absent_at_the_source_and_refused_connection(remote, tmp_path):
    with server(remote) as url, pytest.raises(root.DataUnavailable, match="404"):
        get(url, tmp_path / "local", files=["c.bin"])
    with pytest.raises(root.DataUnavailable, match="refused"):
        get(url, tmp_path / "local")


@pytest.mark.timeout(20)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # requests leaves a timed-out socket to the garbage collector
def test_a_silent_server_does_not_hang(monkeypatch, tmp_path):
    monkeypatch.setattr(root, "READ_SECONDS", 0.2)
    with server(None, silent=True) as url, pytest.raises(root.DataUnavailable, match="timed out"):
        get(url, tmp_path / "local")
    gc.collect()
    assert not (tmp_path / "local").exists()


@pytest.mark.parametrize("code, says", [(errno.EROFS, "read-only"), (errno.ENOSPC, "full disk")])
def test_read_only_and_full_disks(monkeypatch, remote, tmp_path, code, says):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    folder = tmp_path / "local"
    folder.mkdir()
    with monkeypatch.context() as patch, server(remote) as url:
        patch.setattr(root.os, "replace", refuse)
        with pytest.raises(root.DataNotWritten, match=says):
            get(url, folder)
        with pytest.raises(root.DataNotWritten, match=says):
            root.write_atomic(folder / "x", lambda file: file.write(b"1"))
        with pytest.raises(root.DataNotWritten, match=says):
            root.write_atomic(folder / "x", refuse)
        patch.setattr(root.tempfile, "mkdtemp", refuse)
        with pytest.raises(root.DataNotWritten, match=says):
            get(url, folder)
    assert everything_under(folder) == []


def test_a_file_where_the_folder_should_be(tmp_path, remote):
    (tmp_path / "local").write_text("not a folder")
    with server(remote) as url, pytest.raises(root.DataNotWritten, match="local"):
        get(url, tmp_path / "local")


def test_write_atomic_replaces_whole_files_only(tmp_path):
    path = tmp_path / "x"
    root.write_atomic(path, lambda file: file.write(b"old"))
    with pytest.raises(ZeroDivisionError):
        root.write_atomic(path, lambda file: file.write(b"new") / 0)
    assert path.read_bytes() == b"old"
    assert everything_under(tmp_path) == ["x"]


def test_hashes_name_content_and_file_not_folder(tmp_path):
    for folder, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_bytes(content)
    a, b, c = (root.content_hash([tmp_path / folder / "x"]) for folder in "abc")
    assert a == b != c
    with pytest.raises(root.DataCorrupt, match="gone"):
        root.content_hash([tmp_path / "gone"])


def test_array_hashes_see_value_type_and_shape():
    base = torch.arange(6)
    variants = [base, base.int(), base.view(2, 3), base.flip(0), torch.zeros(0)]
    assert len({root.hash_parts({"x": v}) for v in variants}) == len(variants)
    assert root.hash_parts({"x": base.view(3, 2).T}) == root.hash_parts({"x": np.arange(6).reshape(3, 2).T.copy()})


def test_unknown_names_and_options_are_prose(tmp_path):
    with pytest.raises(ValueError, match=r"no data set 'citeseeer'\. Did you mean 'citeseer'\? Known: bccd, cifar10, "):
        datasets.load("citeseeer")
    with pytest.raises(ValueError, match=r"option of 'digits' named 'sed'\. Did you mean 'seed'"):
        datasets.load("digits", sed=1)
    with pytest.raises(ValueError, match="option of 'cora' named 'limit'"):
        datasets.load("Cora", tmp_path, limit=3)


@pytest.mark.parametrize("name", datasets.NAMES)
def test_every_data_set_is_listed_and_is_there_or_says_what_is_missing(name, monkeypatch, tmp_path):
    monkeypatch.setenv("GCONV_OFFLINE", "1")
    lines = [line.split("|")[1] for line in datasets.__doc__.splitlines() if line[:1] == "|"]
    assert name in {part.strip() for line in lines for part in line.split(",")}
    try:
        found = datasets.load(name, tmp_path)
    except root.DataUnavailable as error:
        assert all(f"{what}:" in str(error) for what in ("missing", "folder", "source", "remedy"))
    else:
        assert name in datasets.EMBEDDED and len(found.summary()) < 2000


def test_long_entries_of_a_summary_are_shortened():
    texts = text.TextSet(label="a", classes=("b",), content_hash="c", source="d", documents=(("word",) * 99,) * 9999,
                         labels=torch.zeros(9999), test=torch.zeros(9999))  # fmt: skip
    pairs = multi30k.Pairs(("one two",) * 9999, ("eins zwei",) * 9999)
    sentences = multi30k.TranslationSet(label="a", classes=("b",), content_hash="c", source="d", train=pairs, val=pairs,
                                        test=pairs)  # fmt: skip
    assert "9999, the first ('word'" in texts.summary() and len(texts.summary()) < 500
    assert "source: 9999, the first 'one two'; target: 9999" in sentences.summary() and len(sentences.summary()) < 500


def test_load_takes_any_case_and_hands_options_on(monkeypatch, tmp_path):
    monkeypatch.setenv("GCONV_OFFLINE", "1")
    assert datasets.load("Karate").label == "karate"
    assert datasets.load("digits", seed=1).content_hash != datasets.load("digits").content_hash
    for name, folder in (("CIFAR10", "cifar-10-batches-py"), ("PubMed", "Planetoid/PubMed/raw")):
        with pytest.raises(root.DataUnavailable, match=str(tmp_path / folder)):
            datasets.load(name, tmp_path)


def run(*arguments, **environment):
    command = [sys.executable, "-m", "datasets", *arguments]
    return subprocess.run(command, cwd=ROOM, env=os.environ | environment, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_command_line_prints_a_summary():
    done = run("karate")
    assert done.returncode == 0
    for fact in ("karate", "4: community 0", datasets.load("karate").content_hash, "Zachary", "x=[34, 34]"):
        assert fact in done.stdout


@pytest.mark.slow
def test_command_line_ends_in_one_message(tmp_path):
    done = run("cora", "--data-root", str(tmp_path), GCONV_OFFLINE="1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Cora is not there")
    assert "Traceback" not in done.stderr


def test_import_is_light():
    heavy = "sklearn", "skimage", "networkx", "torch_geometric", "pooch", "scipy", "requests"
    code = f"import sys, datasets; print([m for m in {heavy} if m in sys.modules])"
    done = fresh(code, cwd=ROOM)
    assert done.stdout.strip() == "[]", done.stderr
