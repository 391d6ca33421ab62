"""Calls of torch.nn.functional as modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

MODULES = {  # functions of torch.nn.functional that take the arguments of a module
    "sigmoid": nn.Sigmoid, "softplus": nn.Softplus, "logsigmoid": nn.LogSigmoid, "celu": nn.CELU, "elu": nn.ELU,
    "hardsigmoid": nn.Hardsigmoid, "hardswish": nn.Hardswish, "selu": nn.SELU, "gelu": nn.GELU, "silu": nn.SiLU,
    "mish": nn.Mish, "softmax": nn.Softmax, "leaky_relu": nn.LeakyReLU,
    "avg_pool1d": nn.AvgPool1d, "avg_pool2d": nn.AvgPool2d, "avg_pool3d": nn.AvgPool3d,
    "adaptive_avg_pool1d": nn.AdaptiveAvgPool1d, "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "adaptive_avg_pool3d": nn.AdaptiveAvgPool3d, "adaptive_max_pool1d": nn.AdaptiveMaxPool1d,
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d, "adaptive_max_pool3d": nn.AdaptiveMaxPool3d,
    "max_pool1d": nn.MaxPool1d, "max_pool2d": nn.MaxPool2d, "max_pool3d": nn.MaxPool3d,
    "interpolate": nn.Upsample,
}  # fmt: skip


def as_module(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module | None:
    """The module equivalent to a call of a function in torch.nn.functional; None if there is none."""
    more = args[1:]
    options = {key: value for key, value in kwargs.items() if key not in ("inplace", "_stacklevel", "dtype")}
    if name in MODULES:
        if name.startswith("max_pool"):  # its positional arguments are in another order than the module's
            window = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
            options, more = {**dict(zip(window, more, strict=False)), **options}, ()
        try:
            made: nn.Module = MODULES[name](*more, **options)
        except TypeError:
            return None
        return made.eval()
    kind: dict[str, Any] = {"linear": nn.Linear} | {f"conv{d}d": getattr(nn, f"Conv{d}d") for d in (1, 2, 3)}
    kind |= {f"conv_transpose{d}d": getattr(nn, f"ConvTranspose{d}d") for d in (1, 2, 3)}
    if name not in kind:
        return None
    middle = ["output_padding", "groups", "dilation"] if "transpose" in name else ["dilation", "groups"]
    keys = ["weight", "bias"] if name == "linear" else ["weight", "bias", "stride", "padding", *middle]
    given = {**dict(zip(keys, more, strict=False)), **options}
    weight: Tensor = given.pop("weight")
    given.pop("bias", None)
    groups = given.get("groups", 1)
    if name == "linear":
        made = nn.Linear(weight.shape[1], weight.shape[0], False, dtype=weight.dtype, device=weight.device)
    else:
        i, o = (
            (weight.shape[0], weight.shape[1] * groups)
            if "transpose" in name
            else (weight.shape[1] * groups, len(weight))
        )
        made = kind[name](i, o, tuple(weight.shape[2:]), bias=False, dtype=weight.dtype, device=weight.device, **given)
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return made.eval()
