"""torch's own module samples through `convert`: what a user sees of a layer stays as it was.

Value, gradient, second gradient, strides of the result, in-place use of it, no batch, an empty batch, errors.
"""

import copy
import itertools
import warnings
from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing._internal.two_tensor import TwoTensor

from gconv.interop import convert, converted, torch_nn
from gconv.interop.converted import Converted
from gconv.interop.peer import run
from gconv.spec import Inadmissible

FAMILY = ("Conv", "Pool", "Pad", "Upsample", "old", "Shuffle", "Linear")
OUTSIDE = ("Loss", "Fractional", "LPPool")
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
    torch.complex128: 1e-9,
    torch.complex64: 1e-4,
}
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def own_samples():
    """What torch's samples leave out."""
    for mode, d in (("linear", 1), ("bilinear", 2), ("bicubic", 2), ("trilinear", 3)):
        x = torch.randn(2, 2, *(5, 7, 3)[:d])
        for factor, corners, again in ((1.7, False, False), (0.6, False, True), (2.3, True, False), (2, False, None)):
            yield lambda m=mode, f=factor, c=corners, a=again: nn.Upsample(None, f, m, c, a), x
        yield lambda m=mode, d=d: nn.Upsample((4, 9, 2)[:d], mode=m), x
    for mode, d in itertools.product(("nearest", "nearest-exact", "area"), (1, 2, 3)):
        x = torch.randn(2, 2, *(5, 7, 3)[:d])
        for factor in (1.7, 0.6, 2, 3.1):
            yield lambda m=mode, f=factor: nn.Upsample(None, f, m), x
        yield lambda m=mode, d=d: nn.Upsample((4, 9, 2)[:d], mode=m), x
    yield lambda: nn.Upsample(size=0, mode="area"), torch.randn(1, 1, 6, 6)
    for kind in ("Circular", "Reflection", "Replication", "Zero"):
        for d in (1, 2, 3):
            pads = (-1, 1, 0, 2, 1, -1)[: 2 * d]
            yield lambda k=kind, d=d, p=pads: getattr(nn, f"{k}Pad{d}d")(p), torch.randn(2, 3, *(4, 5, 6)[:d])
            yield lambda k=kind, d=d: getattr(nn, f"{k}Pad{d}d")(0), torch.randn(2, 3, *(4, 5, 6)[:d])
    for layer, shape in (
        (lambda: nn.MaxPool1d(2, None, 1, 2), (1, 1, 1)),
        (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 3, 6, 8)),
        (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (2, 3, 6, 8)),
        (lambda: nn.AdaptiveAvgPool2d(7), (2, 6, 14, 14)),
        (lambda: nn.AdaptiveAvgPool2d(1), (2, 6, 5, 4)),
        (lambda: nn.PixelUnshuffle(2), (2, 3, 4, 6)),
        (lambda: nn.PixelShuffle(2), (2, 8, 4, 6)),
        (lambda: nn.ZeroPad2d(-3), (1, 1, 6, 6)),
        (lambda: nn.Linear(4, 3), (2, 5, 6, 4)),
        (lambda: nn.Conv2d(3, 6, 5), (1, 3, 2, 2)),  # these raise
        (lambda: nn.ZeroPad2d(-4), (1, 1, 6, 6)),
        (lambda: nn.MaxPool2d(3), (1, 3, 2, 2)),
        (lambda: nn.PixelShuffle(2), (1, 3, 6, 6)),
        (lambda: nn.Fold(7, 2), (1, 5, 36)),
    ):
        yield layer, torch.randn(shape)


def samples():
    """(name, a layer, an input) of torch's own samples and of those above."""
    from torch.testing._internal.common_modules import module_db
    from torch.testing._internal.common_nn import get_new_module_tests

    kinds = {"device": "cpu", "dtype": torch.float64, "requires_grad": False, "training": True}
    for info in module_db:
        name = info.module_cls.__name__
        if any(part in name for part in FAMILY) and not any(part in name for part in OUTSIDE):
            for number, sample in enumerate(info.module_inputs_func(info, **kinds)):
                made, given = sample.constructor_input, sample.forward_input
                x = next(iter((*given.args, *given.kwargs.values())))
                yield f"{name}-{number}", lambda c=info.module_cls, a=made: c(*a.args, **a.kwargs), x
    for number, entry in enumerate(get_new_module_tests()):
        name = entry.get("fullname") or entry["module_name"]
        made = entry.get("constructor") or getattr(nn, entry.get("module_name", ""), None)
        given = entry.get("constructor_args", ())
        if name.startswith("interpolate"):  # a function in a module: its arguments are those of nn.Upsample
            cells = made().forward.__func__.__closure__
            options = next(cell.cell_contents for cell in cells if isinstance(cell.cell_contents, dict))
            made, given = lambda options=options: nn.Upsample(**options), ()
        elif not any(part in name for part in FAMILY) or "int_input" in name:
            continue
        size = entry.get("input_size")
        x = torch.randn(*size, dtype=torch.float64) if size else entry["input_fn"]()
        yield f"{name}-{number}", lambda made=made, given=given: made(*given), x
    for number, (made, x) in enumerate(own_samples()):
        yield f"own-{number}", made, x.double()


def forms(x):
    """x in other memory formats, without a batch, and as an empty one."""
    yield x
    if x.ndim in LAST:
        yield x.contiguous(memory_format=LAST[x.ndim])
    if x.ndim > 2:
        yield x.mT.contiguous().mT
        yield x.movedim(1, -1).contiguous().movedim(-1, 1)
    yield torch.cat([x, x], -1)[..., : x.shape[-1]]
    yield x[:0]
    yield x[0] if len(x) else x
    if x.ndim > 2:
        yield x[:, :0]


def answer(layer, x, gradients):
    """The result and its derivatives, or the error."""
    leaf = x.clone(memory_format=torch.preserve_format) if x.is_contiguous() else x.detach()
    leaf = leaf.detach().requires_grad_(gradients)
    leaves = [leaf, *layer.parameters()]
    try:
        y = layer(leaf)
        y = y[0] if isinstance(y, tuple) else y
        if not gradients:
            return y, [], leaf
        probe = torch.sin(torch.arange(y.numel(), dtype=torch.float64) + 1).reshape(y.shape)
        probe = (probe / 8 if y.dtype == torch.float16 else probe).to(y.dtype)  # second derivatives within its range
        first = torch.autograd.grad((y * y * probe).sum().abs(), leaves, create_graph=True, allow_unused=True)
        size = sum((g.abs().double() ** 2).sum() for g in first if g is not None)
        second = torch.autograd.grad(size, leaves, allow_unused=True) if size.requires_grad else []
        return y, [*first, *second], leaf
    except Exception as error:
        return error


def differ(theirs, ours, tolerance):
    """What differs between two numbers, or None; where torch gives none, zeros are as good."""
    if theirs is None or ours is None:
        other = ours if theirs is None else theirs
        return None if other is None or not other.any() else "one is None"
    if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
        return f"{tuple(theirs.shape)} {theirs.dtype} and {tuple(ours.shape)} {ours.dtype}"
    a, b = (t.detach().to(torch.complex128) for t in (theirs, ours))
    scale = 1 + (float(a[a.abs().isfinite()].abs().max()) if a.abs().isfinite().any() else 0.0)
    same = ((a - b).abs() <= tolerance * scale) | (a == b) | (a.isnan() & b.isnan())
    return None if bool(same.all()) else f"off by {float((a - b).abs().max()):.3g} of {scale:.3g}"


def problems(layer, twin, x, gradients):
    """What a user would see of the exchange, in words."""
    theirs, ours = answer(layer, x, gradients), answer(twin, x, gradients)
    if isinstance(theirs, Exception):
        lacking = "not implemented for" in str(theirs)  # torch has no kernel for this type here
        behind = "is out of bounds for dimension" in str(theirs)  # of its max pools, for windows of padding alone
        if isinstance(ours, type(theirs)) or lacking or behind:
            return []
        return [f"{theirs!r} became {ours!r}"]
    if isinstance(ours, Exception):
        return [f"raises {ours!r}"]
    tolerance = TOLERANCE[x.dtype]
    found = [differ(theirs[0], ours[0], tolerance)]
    if theirs[0].stride() != ours[0].stride():
        found.append(f"strides {theirs[0].stride()} became {ours[0].stride()}")
    if len(theirs[1]) != len(ours[1]):
        found.append("derivatives of another order")
    found += [differ(a, b, 30 * tolerance) for a, b in zip(theirs[1], ours[1], strict=False)]
    again = twin(ours[2])  # in place, with and without gradients
    again = again[0] if isinstance(again, tuple) else again
    changed = again.mul_(-2)
    if gradients:
        changed.sum().abs().backward()
    found.append(differ(theirs[0] * -2, changed, tolerance))
    after = twin(ours[2])
    found.append(differ(theirs[0], after[0] if isinstance(after, tuple) else after, tolerance))
    return [text for text in found if text]


def examined(cases, dtypes, few=None):
    """All problems of all samples in these types, and how many comparisons were made."""
    found, made = [], 0
    for name, make, x in cases:
        for dtype in dtypes:
            if x.is_complex() and not dtype.is_complex:
                continue
            torch.manual_seed(0)
            layer = make()
            if "Lazy" in name:  # its parameters are made by the first call
                layer(x.float())
            layer = layer.to(dtype)
            twin = convert(layer)
            if not isinstance(twin, Converted):
                continue
            variants = [(layer, twin)]
            weight = getattr(layer, "weight", None)
            if weight is not None and weight.ndim in LAST:
                variants.append(tuple(copy.deepcopy(m).to(memory_format=LAST[weight.ndim]) for m in (layer, twin)))
            for (a, b), form, gradients in itertools.product(variants, list(forms(x.to(dtype)))[:few], (True, False)):
                made += 1
                where = f"{name} {dtype} {tuple(form.shape)} {form.stride()} gradients={gradients}"
                found += [f"{where}: {text}" for text in problems(a, b, form, gradients)]
    return found, made


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of even kernels with padding "same", and of complex numbers
        yield


QUICK = {f"{name}2d" for name in ("Conv", "AvgPool", "MaxPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "ReflectionPad")}


def test_one_sample_of_some_classes():
    first = {}
    for name, make, x in samples():
        first.setdefault(name.split("-")[0], (name, make, x))
    cases = [case for key, case in first.items() if key in QUICK | {"Linear", "PixelShuffle", "Unfold"}]
    found, made = examined(cases, [torch.float32], few=2)
    assert made > 30 and not found, "\n".join(found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [lambda: nn.AdaptiveMaxPool3d((1, 2, 3)), lambda: nn.Conv3d(2, 4, 2, groups=2)])
def test_volumes_have_the_strides_of_torch(make, dtype):
    """Few of torch's kernels of volumes keep channels_last; a filter a channel shows it in the weight alone."""
    found, made = examined([("volume", make, torch.randn(2, 2, 3, 4, 5))], [dtype], few=2)
    assert made >= 4 and not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_all_samples(dtype):
    found, made = examined(list(samples()), [dtype])
    assert made > 3000 and not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_samples(dtype):
    cases = [case for case in samples() if any(part in case[0] for part in ("Conv", "Linear", "Pad", "ixel", "old"))]
    found, made = examined(cases, [dtype])
    assert made > 1000 and not found, "\n".join(found)


def one_of_each_class(parts=FAMILY):
    """(a layer, its converted copy, an input) for each class."""
    seen = set()
    for _, make, x in samples():
        torch.manual_seed(0)
        layer = make()
        if x.is_complex() or type(layer) in seen or not any(part in type(layer).__name__ for part in parts):
            continue
        if parametrize.is_parametrized(layer) or hasattr(layer, "cls_to_become"):
            continue
        twin = convert(layer.double())
        if isinstance(twin, Converted):
            seen.add(type(layer))
            yield layer, twin, x.double()


def reads(layer, *inputs):
    """How often each of these calls computes the weight."""
    counted = [0]

    class Counting(nn.Module):
        def forward(self, weight):
            counted[0] += 1
            return weight * 1.0

    parametrize.register_parametrization(layer, "weight", Counting())
    found = []
    for x in inputs:
        counted[0] = 0
        layer(x)
        found.append(counted[0])
    return found


def test_a_call_computes_its_weight_once():
    """A parametrization may change its state in each call, such as the power iteration of spectral_norm."""
    compared = 0
    for layer, twin, x in one_of_each_class(("Conv", "Linear")):
        inputs = (x, x[:0], x.expand(2, *x.shape[1:]) if len(x) == 1 else x[0])
        assert reads(twin, *inputs) == reads(layer, *inputs) == [1] * 3, type(layer)
        compared += 1
    assert compared == 7

    class Twice(nn.Linear):
        def forward(self, input):
            return super().forward(input) + self.weight.sum()

    assert reads(Twice(2, 2), torch.ones(1, 2)) == [2]


def scattered(lowerings):
    """The convolutions and lowerings whose weight has a gradient that `view` refuses."""
    for layer, twin, x in one_of_each_class(("Conv",)):
        for lowering in lowerings:
            with suppress(Inadmissible):
                (given,) = torch.autograd.grad(run(twin, x, lowering=lowering).sum(), twin.weight)
                if not given.is_contiguous():
                    yield type(layer).__name__, lowering


def test_gradients_of_weights_can_be_flattened_by_view(monkeypatch):
    lowerings = "native", "im2col", "sparse:transform", "sparse:aggregate", "fft", "dense"
    assert not list(scattered(lowerings))
    monkeypatch.setattr(torch_nn, "by_taps", lambda weight: weight.flatten(2))
    assert {name for name, _ in scattered(("im2col",))} >= {"Conv1d", "Conv2d", "Conv3d"}


class Whole(torch.Tensor):
    """A tensor whose class knows whole layers only, as those for gradients per sample of torch.nn.utils."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name not in ("__get__", "dim", "interpolate") and not name.startswith(KNOWN):
            raise RuntimeError(f"unknown: {name}")
        with torch._C.DisableTorchFunctionSubclass():
            y = func(*args, **(kwargs or {}))
        return y.as_subclass(cls) if type(y) is torch.Tensor else y


KNOWN = ("conv", "linear", "avg_pool", "max_pool", "boolean_dispatch", "adaptive", "pad", "pixel", "unfold", "fold")


class Aten(TwoTensor):
    """A tensor whose class knows torch's own operators only, as distributed tensors."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args, kwargs):
        if func.namespace != "aten":
            raise RuntimeError(f"unknown: {func}")
        return super().__torch_dispatch__(func, types, args, kwargs)


def in_such_tensors(layer, x, weights, wrap):
    given = {name: wrap(p.detach()) for name, p in layer.named_parameters()} if weights else {}
    try:
        y = torch.func.functional_call(layer, given, (x if weights else wrap(x),))
        return type(y), y.a if isinstance(y, TwoTensor) else y.as_subclass(torch.Tensor)
    except Exception as error:
        return type(error), None


@pytest.mark.parametrize("wrap", [lambda t: t.as_subclass(Whole), lambda t: Aten(t, t.clone())])
def test_tensors_of_classes_that_know_torchs_functions_or_operators_only(wrap, monkeypatch):
    known = 0
    for layer, twin, x in one_of_each_class():
        for weights in {False, bool(list(layer.parameters()))}:
            (kind, theirs), (same, ours) = (in_such_tensors(m, x, weights, wrap) for m in (layer, twin))
            assert kind is same, (layer, weights)
            if theirs is not None:
                known += 1
                torch.testing.assert_close(ours, theirs)
    assert known > 30
    monkeypatch.setattr(torch_nn, "computes_itself", lambda t: False)
    twin = convert(nn.AdaptiveAvgPool2d((2, 3)))
    assert in_such_tensors(twin, torch.ones(1, 2, 5, 4), False, wrap)[0] is RuntimeError


def traced_elsewhere(layer, twin, x):
    """The problems of a trace of `twin` at other sizes, where a trace of `layer` is right."""
    traces = [torch.jit.trace(module.eval(), x, check_trace=False) for module in (layer, twin)]
    for other in (torch.cat([x, x.cos(), x.sin()]), torch.cat([x, x.cos()], -1), torch.cat([x, x.cos()], -2)):
        try:
            torch.testing.assert_close(traces[0](other), layer(other))
        except (RuntimeError, AssertionError):
            continue
        try:
            torch.testing.assert_close(traces[1](other), layer(other))
        except (RuntimeError, AssertionError) as error:
            yield f"{layer}, {tuple(x.shape)} to {tuple(other.shape)}: {error}"


def test_a_trace_holds_for_other_sizes_as_before(monkeypatch):
    found = [text for case in one_of_each_class() if case[2].ndim > 2 for text in traced_elsewhere(*case)]
    assert not found, "\n".join(found)
    layer = nn.AdaptiveAvgPool2d(1)
    monkeypatch.setattr(converted, "is_jit_tracing", lambda: False)
    assert len(list(traced_elsewhere(layer, convert(layer), torch.randn(1, 2, 3, 4)))) == 2


def test_the_comparison_notices():
    """Negative control: another format, an error of another class, a result that can't be changed in place."""

    class Turned(nn.AvgPool2d):
        def forward(self, input):
            return super().forward(input).contiguous(memory_format=torch.channels_last)

    class Expanded(nn.AvgPool2d):
        def forward(self, input):
            return super().forward(input).mean((2, 3), keepdim=True).expand(2, 3, 2, 2)

    class Other(nn.AvgPool2d):
        def forward(self, input):
            raise KeyError("kernel")

    layer, x = nn.AvgPool2d(2), torch.ones(2, 3, 4, 4)
    assert problems(layer, nn.AvgPool2d(2), x, True) == []
    assert "strides" in problems(layer, Turned(2), x, True)[0]
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        problems(layer, Expanded(2), x, True)
    assert "KeyError" in problems(layer, Other(2), x[..., :1, :1], True)[0]
