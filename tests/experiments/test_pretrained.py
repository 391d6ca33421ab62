"""Trained convolutions from wheels: read safely, the same network as their file's, moved to other images."""

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import gconv
from datasets import DataCorrupt, DataUnavailable, wheels
from experiments.harness import render
from experiments.harness.common import Results
from experiments.harness.experiment import Place
from experiments.large import pretrained_convolutions as carried
from experiments.large import wheel_networks

SMOKE = carried.Config(network="pnet", way="adapters", dataset="random", shots=4, steps=2, rank=1)


def absent(name):
    """Whether a wheel is not at hand."""
    try:
        wheels.wheel_of(name)
    except DataUnavailable:
        return True
    return False


# -- reading -------------------------------------------------------------------------------------------------------


def packed(tmp_path, monkeypatch, blob, member="one.pt", known=None):
    """A root with a wheel that holds a file, the known content being `known`."""
    known = blob if known is None else known
    monkeypatch.setitem(
        wheels.WEIGHTS, "pnet", wheels.Weights("a-b", "1", "one.pt", len(known), hashlib.sha256(known).hexdigest())
    )
    (tmp_path / "wheels").mkdir()
    path = tmp_path / "wheels" / "a_b-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, blob)
    return path


def test_weights_are_read_from_the_archive(tmp_path, monkeypatch):
    given = {"w": torch.arange(3.0)}
    torch.save(given, tmp_path / "one.pt")
    packed(tmp_path, monkeypatch, (tmp_path / "one.pt").read_bytes())
    assert torch.equal(wheels.load_weights("pnet", tmp_path)["w"], given["w"])


def test_wheels_that_are_not_what_they_say_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(DataUnavailable, match=r"remedy:  python -m pip download --no-deps facenet-pytorch==2\.6\.0"):
        wheels.load_weights("pnet", tmp_path)
    with pytest.raises(ValueError, match=r"no weights named 'pnett'\. Did you mean 'pnet'"):
        wheels.load_weights("pnett", tmp_path)
    path = packed(tmp_path, monkeypatch, bytes(2**20), known=b"0123")  # a bomb: no more than 5 bytes are unpacked
    with pytest.raises(DataCorrupt, match=r"one\.pt in .* is not that of a-b 1"):
        wheels.load_weights("pnet", tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.pt", b"0123")
    with pytest.raises(DataCorrupt, match=r"has no one\.pt"):
        wheels.load_weights("pnet", tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataCorrupt, match="is damaged"):
        wheels.load_weights("pnet", tmp_path)


@pytest.mark.parametrize("name", wheels.WEIGHTS)
@pytest.mark.slow
def test_real_weights_fill_the_network_and_convert_exactly(name):
    if absent(name):
        pytest.skip("the wheel is not there")
    metrics = carried.run(replace(SMOKE, network=name, dataset="random"), Place()).metrics
    given = wheels.load_weights(name)
    model = wheel_networks.trained(name, given)
    kind = wheel_networks.KINDS[name]
    x = torch.rand(2, 1 if kind.grey else 3, kind.side, kind.side)
    torch.testing.assert_close(gconv.convert(model)(x), model(x))
    assert metrics["value"] < 1e-12 and metrics["gradient"] < 1e-12
    used = sum(v.numel() for v in wheel_networks.KINDS[name].weights(given).values())
    assert used == sum(v.numel() for k, v in model.state_dict().items() if not k.endswith("tracked"))


@pytest.mark.slow
def test_direction_gives_what_onnxruntime_gives():
    onnxruntime = pytest.importorskip("onnxruntime")
    if absent("direction"):
        pytest.skip("the wheel is not there")
    blob = wheels.read_member(wheels.wheel_of("direction"), wheels.WEIGHTS["direction"])
    x = torch.rand(2, 3, 48, 96) * 2 - 1
    (wanted,) = onnxruntime.InferenceSession(blob).run(None, {"x": x.numpy()})
    model = wheel_networks.trained("direction", wheels.load_weights("direction"))
    torch.testing.assert_close(gconv.convert(model)(x).softmax(1), torch.from_numpy(wanted), atol=1e-5, rtol=0)
    with torch.no_grad():  # the control
        model.features[2].se.se_1.bias += 0.1
    assert (model(x).softmax(1) - torch.from_numpy(wanted)).abs().max() > 1e-4


@pytest.mark.slow
def test_emotions_gives_what_keras_gives(tmp_path):
    pytest.importorskip("keras")
    if absent("emotions"):
        pytest.skip("the wheel is not there")
    path = tmp_path / "model.h5"
    path.write_bytes(wheels.read_member(wheels.wheel_of("emotions"), wheels.WEIGHTS["emotions"]))
    code = (
        "import sys, warnings, numpy as np; warnings.simplefilter('ignore'); from keras.models import load_model; "
        "x = np.load(sys.argv[2]); np.save(sys.argv[2], np.asarray(load_model(sys.argv[1], compile=False).predict(x)))"
    )
    x, data = torch.rand(2, 1, 64, 64) * 2 - 1, tmp_path / "x.npy"
    np.save(data, x.movedim(1, -1).numpy())
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    command = [sys.executable, "-c", code, str(path), str(data)]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)
    model = wheel_networks.trained("emotions", wheels.load_weights("emotions"))
    torch.testing.assert_close(model(x).softmax(1).detach(), torch.from_numpy(np.load(data)), atol=1e-5, rtol=0)


# -- the networks --------------------------------------------------------------------------------------------------


def test_a_dense_layer_is_a_convolution_in_the_order_of_its_file():
    given = {"conv4.weight": torch.rand(128, 64, 2, 2), "conv4.bias": torch.rand(128)}
    for number, (i, o) in enumerate(((3, 32), (32, 64), (64, 64)), 1):
        given |= {f"conv{number}.weight": torch.rand(o, i, 3, 3), f"conv{number}.bias": torch.rand(o)}
    given |= {f"prelu{n}.weight": torch.rand(o) for n, o in enumerate((32, 64, 64, 128, 256), 1)}
    given |= {"dense5.weight": torch.rand(256, 1152), "dense5.bias": torch.rand(256)}
    given |= {"dense6_1.weight": torch.rand(2, 256), "dense6_1.bias": torch.rand(2)}
    model = wheel_networks.trained("onet", given)
    seen = []
    model.features[11].register_forward_hook(lambda m, x, y: seen.append((x[0], y)))
    model(torch.rand(2, 3, 48, 48))
    ((x, y),) = seen
    dense = x.permute(0, 3, 2, 1).flatten(1) @ given["dense5.weight"].mT + given["dense5.bias"]
    torch.testing.assert_close(y.flatten(1), dense, rtol=1e-4, atol=0)
    plain = x.flatten(1) @ given["dense5.weight"].mT + given["dense5.bias"]
    assert not torch.allclose(y.flatten(1), plain, rtol=1e-3)


def test_the_maximum_of_keras_pads_at_the_end():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    found = wheel_networks.PooledSame()(x)
    assert found[0, 0].tolist() == [[10, 11], [14, 15]]
    assert not torch.equal(found, nn.functional.max_pool2d(x, 3, 2, 1))  # torch's padding, on both sides
    odd = torch.rand(1, 1, 5, 5)
    torch.testing.assert_close(wheel_networks.PooledSame()(odd), nn.functional.max_pool2d(odd, 3, 2, 1))


# -- the experiment ------------------------------------------------------------------------------------------------


def test_smoke_makes_a_row_tables_and_a_figure(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    carried.main(["--smoke", "--network", "pnet", "--way", "last", "--seeds", "1", "--results", str(path)])
    rows = Results(path).rows()
    tables = [render.render(table, rows) for table in carried.TABLES]
    render.paint(carried.FIGURE, rows, tmp_path / "figure.png")
    assert len(rows) == 1 and "pnet" in capsys.readouterr().out
    assert "converted" in tables[0] and "last: trained" in tables[2]
    assert rows[0]["metrics"]["value"] < 1e-12


def test_adapters_train_less_than_all_and_nothing_else():
    given = carried.loaded(SMOKE)
    counts = {}
    for way in carried.WAYS:
        model = carried.prepared(given, replace(SMOKE, way=way))
        counts[way] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if way == "adapters":
            model(torch.rand(1, 3, 12, 12)).sum().backward()
            moved = [name for name, p in model.named_parameters() if p.grad is not None]
            assert all(name.startswith("last.") or name.endswith((".A", ".B")) for name in moved)
    assert counts["last"] < counts["adapters"] < counts["all"] == counts["scratch"]
