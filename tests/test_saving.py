"""Models as files: what is loaded computes bit for bit what was saved; every damage ends in one sentence."""

import copy
import json
import os
import random
import stat
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from shared import every_operator
from test_converted_networks import Block, UNet, resnet, small
from torch import nn

import gconv
from gconv import GConv, InputError, adapt, convert, load, save
from gconv.blocks import inverted_residual, shufflenet_unit
from gconv.description import describe_module
from gconv.operators import cheb, conv2d, gat, gcn
from gconv.spec import operator
from gconv.testing import Case

F64 = torch.float64


def round_trip(module, folder, **options):
    save(module, folder / "m.safetensors")
    return load(folder / "m.safetensors", **options)


@every_operator
def test_every_operator(name, first, tmp_path):
    for sample in operator(name).samples()[first:]:
        for dtype in (F64, torch.float32):
            case = Case.of(sample, dtype)
            twin = round_trip(case.layer, tmp_path)
            assert type(twin) is GConv and twin.spec == case.layer.spec and not twin.training
            y = case(case.x)
            assert torch.equal(twin(case.x, case.domain), y)
            other = round_trip(case.layer, tmp_path, into=GConv(sample.spec, dtype=dtype).eval())
            assert torch.equal(other(case.x, case.domain), y)


MODELS = {
    "small": small,
    "mobilenet": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), inverted_residual(4, 4), nn.Flatten(), nn.Dropout(0.5)
    ),
    "shufflenet": lambda: nn.Sequential(nn.Conv2d(1, 12, 1), shufflenet_unit(12, 24, 3, 2)),
    "converted": lambda: convert(small()),
    "adapted": lambda: adapt(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Hardtanh(), GConv(conv2d(8, 8, 3, groups=8))), 2),
    "pools and norms": lambda: nn.Sequential(
        nn.Conv2d(1, 6, 3, padding="same", padding_mode="circular"),
        nn.GroupNorm(2, 6),
        nn.PReLU(6),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.LayerNorm((8, 8), bias=False),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.ReflectionPad2d((1, 0, 2, 1)),
        nn.ConvTranspose2d(6, 4, 3, stride=2, output_padding=1),
        nn.InstanceNorm2d(4, affine=True),
        nn.Softmax(1),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_without_classes_of_their_own(name, tmp_path):
    torch.manual_seed(0)
    model = MODELS[name]()
    x = torch.randn(2, 1, 16, 16)
    model(x)  # batch norm has statistics
    model.eval()
    model[0].train()
    twin = round_trip(model, tmp_path)
    assert torch.equal(twin(x), model(x))
    assert list(twin.state_dict()) == list(model.state_dict())
    assert [type(m).__name__ for m in twin.modules()] == [type(m).__name__ for m in model.modules()]
    assert [m.training for m in twin.modules()] == [m.training for m in model.modules()]
    flags = [(n, p.requires_grad, p.dtype, p.stride()) for n, p in model.named_parameters()]
    assert [(n, p.requires_grad, p.dtype, p.stride()) for n, p in twin.named_parameters()] == flags


@pytest.mark.parametrize("make", [resnet, UNet])
def test_models_with_classes_of_their_own(make, tmp_path):
    model, x = make().eval(), torch.randn(2, 1, 16, 16)
    fresh = make().eval()
    assert round_trip(model, tmp_path, into=fresh) is fresh
    assert torch.equal(fresh(x), model(x))
    with pytest.raises(InputError, match=r"test_converted_networks\.(Block|UNet).*pass it as into="):
        load(tmp_path / "m.safetensors")


def test_ties_and_shared_layers_are_kept(tmp_path):
    layer = nn.Linear(3, 3)
    net = nn.ModuleDict({"a": layer, "b": nn.Linear(3, 3), "c": layer, "empty": nn.Sequential()})
    net["b"].weight = layer.weight
    twin = round_trip(net, tmp_path)
    assert twin["a"] is twin["c"] and twin["b"].weight is twin["a"].weight and twin["b"].bias is not twin["a"].bias
    assert len(load_file(tmp_path / "m.safetensors")) == 3
    assert len(twin["empty"]) == 0


def test_layers_without_parameters_keep_their_type(tmp_path):
    layer = GConv(gconv.operators.avg_pool2d(2), dtype=F64)
    assert round_trip(layer, tmp_path).at(gconv.Grid((4, 4))).dtype == F64


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path):
    three, x = np.int64(3), torch.randn(1, 3, 8, 8)
    for model in (
        nn.Conv2d(three, three, (three, 3), padding=np.int32(1)),
        nn.LeakyReLU(torch.tensor(0.2)),
        nn.LeakyReLU(np.float32(0.2)),
        nn.Hardtanh(0, np.float64("inf")),
        nn.AvgPool2d((torch.tensor(2), np.int64(1))),
    ):
        assert torch.equal(round_trip(model, tmp_path)(x), model(x))
    with pytest.raises(InputError, match=r"cannot be described as JSON: .*Fraction"):
        save(nn.Dropout(Fraction(1, 3)), tmp_path / "a")


def test_the_permissions_of_a_file_follow_the_umask(tmp_path):
    (tmp_path / "other").touch()
    save(nn.Linear(2, 2), tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "other").stat().st_mode
    (tmp_path / "a").chmod(0o640)
    save(nn.Linear(2, 2), tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_model_without_memory_is_not_loaded_into(tmp_path):
    """torch copies nothing to the meta device."""
    save(nn.Linear(2, 3), tmp_path / "a")
    with pytest.raises(InputError, match="of the model to load into has no memory yet"):
        load(tmp_path / "a", into=nn.Linear(2, 3, device="meta"))


def test_half_precision_and_integers(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(torch.bfloat16)
    twin = round_trip(net, tmp_path)
    assert twin[0].weight.dtype == torch.bfloat16 and twin[1].num_batches_tracked.dtype == torch.int64


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    save(nn.Linear(2, 2), tmp_path / "a")
    before = (tmp_path / "a").read_bytes()

    def fails(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="no space"):
        save(nn.Linear(3, 3), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == before and os.listdir(tmp_path) == ["a"]
    monkeypatch.undo()
    with pytest.raises(OSError):
        save(nn.Linear(3, 3), tmp_path / "missing" / "a")

    monkeypatch.setattr("safetensors.torch.save_file", lambda t, path, m: [os.unlink(path), os.rename(path, path)])
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '[^']*/a'$"):  # the user's name
        save(nn.Linear(3, 3), tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(InputError, match="no values yet"):
        save(nn.Linear(3, 3, device="meta"), tmp_path / "b")
    with pytest.raises(InputError, match="no values yet"):
        save(nn.LazyLinear(3), tmp_path / "b")
    with pytest.raises(TypeError, match="takes a torch module"):
        save({}, tmp_path / "b")
    assert os.listdir(tmp_path) == ["a"]


# -- damage --------------------------------------------------------------------------------------------------------


def rewritten(path, change):
    """The file with another description, as if gconv had written it."""
    from gconv.saving import _digest

    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    about = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["gconv"])
    tensors = load_file(path)
    change(about, tensors)
    if about["digest"] != "wrong":
        about["digest"] = _digest(about, tensors)
    save_file(tensors, path, {"gconv": json.dumps(about)})


def layer(about):
    return about["module"]["children"]["0"]


def set_in(key, value):
    return lambda about, tensors: about.__setitem__(key, value)


def set_layer(**values):
    return lambda about, tensors: layer(about).update(values)


CHANGES = {
    "has version 2 of the format": set_in("version", 2),
    "its content does not match its checksum": set_in("digest", "wrong"),
    "description of the model cannot be read": set_in("module", 3),
    "description of its layer '0' cannot be read": set_layer(kind=3),
    "no operator named 'os.system'": set_layer(operator={"operator": "os.system"}),
    "unknown 'shell'": set_layer(operator={"operator": "gcn", "in_channels": 2, "out_channels": 2, "shell": "x"}),
    "its layer '0' cannot be created": set_layer(operator=[["gcn"]]),
    "does not know layers of the kind 'DataParallel'": set_layer(kind="DataParallel"),
    "has no argument 'device'": set_layer(kind="Linear", arguments={"device": "cuda"}),
    "is not an argument of a layer": set_layer(kind="Linear", arguments={"in_features": {}}),
    "'subprocess.run', which cannot be created from a file": set_layer(**{"kind": "other", "class": "subprocess.run"}),
    "refers to a layer that does not exist": set_layer(kind="same", path="9"),
    "has no tensor '0.weight'": lambda about, tensors: tensors.pop("0.weight"),
    "has the unexpected tensor '1.weight'": lambda about, tensors: tensors.update({"1.weight": torch.ones(1)}),
    r"0.weight has shape \(3,\), not \(3, 4, 5\)": lambda about, tensors: tensors.update({"0.weight": torch.ones(3)}),
    "0.weight is torch.int64, not torch.float32": lambda about, tensors: tensors.update(
        {"0.weight": tensors["0.weight"].long()}
    ),
    "it has no tied tensors 'a' and 'b'": set_in("same", {"a": "b"}),
}


@pytest.mark.parametrize("text", CHANGES)
def test_damage_is_an_error_with_a_message(text, tmp_path):
    path = tmp_path / "m"
    save(nn.Sequential(GConv(cheb(4, 5, k=3))), path)
    rewritten(path, CHANGES[text])
    with pytest.raises(InputError, match=text) as caught:
        load(path)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_truncated_and_changed_bytes(tmp_path):
    path, net = tmp_path / "m", nn.Sequential(GConv(gat(3, 2)), nn.ReLU())
    save(net, path)
    raw = path.read_bytes()
    rng = random.Random(0)
    for length in [0, 5, 8, 9, len(raw) - 1, *(rng.randrange(len(raw)) for _ in range(20))]:
        path.write_bytes(raw[:length])
        with pytest.raises(InputError):
            load(path)
    for _ in range(60):
        at = rng.randrange(len(raw))
        path.write_bytes(raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :])
        try:
            twin = load(path)
        except InputError as error:
            assert "\n" not in str(error)
            continue
        assert json.dumps(describe_module(twin)) == json.dumps(describe_module(net))
        assert all(
            torch.equal(a, b) for a, b in zip(twin.state_dict().values(), net.state_dict().values(), strict=True)
        )


def test_links_are_kept_and_folders_and_pipes_are_refused(tmp_path):
    link, folder, pipe = tmp_path / "link", tmp_path / "folder", tmp_path / "pipe"
    link.symlink_to(tmp_path / "target")
    for width in (2, 3):  # the target is created, then replaced
        save(nn.Linear(width, 1), link)
        assert link.is_symlink() and load(tmp_path / "target").in_features == width
    folder.mkdir()
    os.mkfifo(pipe)
    with pytest.raises(IsADirectoryError, match=r"this is a folder, give the name of a file: '.*folder'"):
        save(nn.Linear(2, 1), folder)
    with pytest.raises(OSError, match="this is a device or a pipe, give the name of a file"):
        save(nn.Linear(2, 1), pipe)
    assert pipe.is_fifo() and len(os.listdir(tmp_path)) == 4


def test_other_files(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(InputError, match="truncated"):
        load(path)
    path.write_bytes(struct.pack("<Q", (1 << 24) + 1) + b" " * ((1 << 24) + 2))
    with pytest.raises(InputError, match="header of 16777217 bytes"):
        load(path)
    path.write_bytes(struct.pack("<Q", 40_000) + b"[" * 40_000)
    with pytest.raises(InputError, match="header cannot be read"):
        load(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(InputError, match="not written by gconv"):
        load(path)
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(InputError):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
    with pytest.raises(TypeError, match="into must be"):
        load(path, into="model")


OTHERS = [
    (
        nn.Sequential(nn.Conv2d(2, 3, 3)),
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1)),
        "its layer '0' is Conv2d.*padding",
    ),
    (nn.Sequential(nn.Conv2d(2, 3, 3)), nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), "its layer '1' is missing there"),
    (nn.Sequential(nn.Tanh()), nn.Sequential(nn.ReLU()), r"is Tanh\(\) there, but ReLU"),
    (GConv(conv2d(2, 3, 3)), GConv(conv2d(2, 3, 3, stride=2)), "the model is conv2d.*stride=1.*stride=2"),
    (GConv(gcn(2, 3)), GConv(gcn(2, 3)).double(), "bias is torch.float32, not torch.float64"),
    (Block(2, 2, 1), Block(2, 2, 2), "its layer 'conv1' is Conv2d"),
    (adapt(GConv(gcn(16, 16)), 2), GConv(gcn(16, 16)), "with adapters"),
]


@pytest.mark.parametrize(("saved", "into", "text"), OTHERS, ids=[text for *_, text in OTHERS])
def test_another_network_is_refused_and_left_as_it_was(saved, into, text, tmp_path):
    before = copy.deepcopy(into.state_dict())
    with pytest.raises(InputError, match=text):
        round_trip(saved, tmp_path, into=into)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), into.state_dict().values(), strict=True))


def test_what_training_alone_reads_may_differ(tmp_path):
    saved = nn.Sequential(nn.Dropout(0.1), nn.ReLU(), nn.BatchNorm2d(2))
    into = nn.Sequential(nn.Dropout(0.5), nn.ReLU(inplace=True), nn.BatchNorm2d(2, momentum=0.2))
    round_trip(saved, tmp_path, into=into)


def test_defaults_are_not_stored_and_arguments_of_another_torch_are_not_compared(tmp_path):
    path, model = tmp_path / "m", nn.Sequential(nn.BatchNorm2d(2, eps=0.1))
    save(model, path)

    def as_newer_torch_writes(about, tensors):
        assert layer(about)["arguments"] == {"num_features": 2, "eps": 0.1}
        layer(about)["arguments"] |= {"affine": True, "argument_of_the_future": True}

    rewritten(path, as_newer_torch_writes)
    load(path, into=model)
    with pytest.raises(
        InputError, match=r"'0' is BatchNorm2d\(num_features=2, eps=0\.1.* but BatchNorm2d\(num_features=2\)"
    ):
        load(path, into=nn.Sequential(nn.BatchNorm2d(2)))


def test_converted_and_plain_layers_are_one_network(tmp_path):
    model, x = small().eval(), torch.randn(1, 1, 8, 8)
    twin = round_trip(model, tmp_path, into=convert(small()).eval())
    torch.testing.assert_close(twin(x), model(x))
