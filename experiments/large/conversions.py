"""`gconv.convert` on large models: which layers are converted, and differences of outputs and gradients.

    minilm    the encoder of MiniLM with its real weights: its linear layers are pointwise convolutions
    gpt2      a GPT-2 of transformers with random weights: its Conv1D is a pointwise convolution
    vit       a vision transformer of transformers with random weights: the patch embedding is a strided convolution
    patches   the patch embedding alone, compared with unfold and a linear layer

Protocol: float64, eval mode. `value` is the largest difference of an output, relative to the largest output; `gradient`
is the same for the gradients of a weighted sum of the outputs with respect to all parameters.

    python -m experiments.large.conversions
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import gconv
from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.render import Table, several, worst
from experiments.large import pretrained
from gconv import GConv
from gconv.operators import pointwise, unfold

MODELS = ("minilm", "gpt2", "vit", "patches")


@dataclass(frozen=True)
class Config:
    """Options."""

    model: Literal["minilm", "gpt2", "vit", "patches", "all"] = "all"
    """Model."""
    width: int = 96
    """Channels of the models with random weights; a multiple of 4."""
    layers: int = 4
    """Blocks of the models with random weights."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.width < 4 or self.width % 4 or self.layers < 1:
            raise ValueError(f"width must be a multiple of 4 and layers at least 1, not {self.width} and {self.layers}")


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run."""
    models: Any = MODELS if config.model == "all" else (config.model,)
    return [replace(config, model=model, seed=config.seed + s) for s in range(seeds) for model in models]


def build(config: Config) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """A model, and its outputs on an input of its kind."""
    tokens = torch.randint(5, 300, (2, 16))
    w, n = config.width, config.layers
    if config.model == "minilm":
        return pretrained.minilm(), lambda m: m(tokens).last_hidden_state
    if config.model == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        gpt = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=16, n_embd=w, n_layer=n, n_head=4))
        return gpt, lambda m: m(tokens).logits
    from transformers import ViTConfig, ViTModel

    sizes: Any = {"hidden_size": w, "num_hidden_layers": n, "num_attention_heads": 4, "intermediate_size": 2 * w}
    vit = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False)
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    return vit, lambda m: m(images).last_hidden_state


class Patches(nn.Module):
    """Patches side by side, then a linear layer: what a vision transformer calls its patch embedding."""

    def __init__(self, channels: int, width: int, size: int):
        super().__init__()
        self.cut, self.linear = GConv(unfold(size, stride=size)), GConv(pointwise(channels * size**2, width, ndim=2))

    def forward(self, images: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, width, h / size, w / size)."""
        y: Tensor = self.linear(self.cut(images))
        return y


def as_patches(conv: nn.Conv2d) -> Patches:
    """Unfold and linear with the weights of a strided convolution."""
    assert conv.bias is not None
    found = Patches(conv.in_channels, conv.out_channels, conv.kernel_size[0]).to(conv.weight.dtype)
    assert found.linear.weight is not None and found.linear.bias is not None
    with torch.no_grad():
        found.linear.weight.copy_(conv.weight.flatten(1).mT[None])  # unfold's channels are (i, k)
        found.linear.bias.copy_(conv.bias)
    return found


def gap(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest number."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def compare(model: nn.Module, other: nn.Module, outputs: Callable[[Any], Tensor]) -> dict[str, float]:
    """Gaps of outputs and of all gradients, and seconds of one forward pass of each."""
    found: dict[str, Any] = {}
    for name, net in (("model", model), ("converted", other)):
        outputs(net)
        clock = time.perf_counter()
        y = outputs(net)
        seconds = time.perf_counter() - clock
        probe = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape)
        used = [p for p in net.parameters() if p.requires_grad]
        found[name] = y, torch.autograd.grad((y * probe).sum(), used, allow_unused=True), seconds
    pairs = [
        (b, a) for a, b in zip(found["model"][1], found["converted"][1], strict=True) if a is not None and b is not None
    ]
    scale = max(a.abs().max().item() for _, a in pairs)
    return {
        "value": gap(found["converted"][0], found["model"][0]),
        "gradient": max((b - a).abs().max().item() for b, a in pairs) / scale,
        "seconds_model": found["model"][2],
        "seconds_converted": found["converted"][2],
    }


def run(config: Config, place: Place) -> common.Outcome:
    """Convert one model."""
    common.seed_everything(config.seed)
    if config.model == "patches":
        return patches(config)
    model, outputs = build(config)
    model = model.double().eval()
    converted = gconv.convert(model)
    report = gconv.interop.preview(model)
    metrics: dict[str, Any] = compare(model, converted, outputs)
    metrics |= {
        "layers": len(report),
        "converted": len(report.converted),
        "stays": ", ".join(f"{n} {kind}" for kind, n in Counter(e.layer for e in report.left_alone).most_common()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "in_converted": sum(p.numel() for e in report.converted for p in model.get_submodule(e.path).parameters()),
    }
    return common.Outcome(metrics, sorted({repr(e.spec) for e in report.converted}))


def patches(config: Config) -> common.Outcome:
    """The patch embedding in both ways."""
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    conv = nn.Conv2d(3, config.width, 8, stride=8).double()
    both = as_patches(conv)
    converted: Any = gconv.convert(conv)
    nets: tuple[Any, ...] = (conv, converted, both)
    outputs = [net(images) for net in nets]
    probe = torch.sin(torch.arange(outputs[0].numel(), dtype=torch.float64)).reshape(outputs[0].shape)
    weights: Any = (conv.weight, converted.weight, both.linear.weight)
    wanted, other, last = (torch.autograd.grad((y * probe).sum(), w)[0] for y, w in zip(outputs, weights, strict=True))
    number = sum(p.numel() for p in conv.parameters())
    metrics: dict[str, Any] = {
        "value": max(gap(y.detach(), outputs[0].detach()) for y in outputs[1:]),
        "gradient": max(gap(other, wanted), gap(last, wanted.flatten(1).mT[None])),
        "layers": 1,
        "converted": 1,
        "stays": "nothing",
        "parameters": number,
        "in_converted": number,
    }
    return common.Outcome(metrics, [repr(layer.spec) for layer in (converted.gconv, both.cut, both.linear)])


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run."""
    if config.model == "minilm":
        return common.Data("MiniLM's weights", pretrained.minilm_hash())
    return common.Data("random weights and inputs", "generated")


def report(rows: list[common.Row]) -> None:
    """Print one line per model."""
    for row in rows:
        m = row["metrics"]
        print(
            f"{row['config']['model']:8s} {m['converted']} of {m['layers']} layers, value {m['value']:.1e}, "
            f"gradient {m['gradient']:.1e}; stays: {m['stays']}"
        )


EXPERIMENT = Experiment(
    name="conversions",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"model": "gpt2", "width": 8, "layers": 1},
    report=report,
    measured=("seconds_model", "seconds_converted"),
    tolerance={"value": 1e-12, "gradient": 1e-12},
)

TABLE = Table(
    name="conversions",
    experiment="conversions",
    label="config.model",
    labels=MODELS,
    cells=several(value="metrics.value", gradient="metrics.gradient"),
    format=worst,
    vary=("seed",),
    words=(
        ("layers", "metrics.layers"),
        ("converted", "metrics.converted"),
        ("parameters", "metrics.parameters"),
        ("in converted layers", "metrics.in_converted"),
        ("stays", "metrics.stays"),
    ),
    caption=(
        "Models of transformers before and after `gconv.convert`, in float64: largest difference of an output and of a "
        "parameter's gradient, relative to the largest. patches: torch's strided convolution against gconv's and "
        "against unfold and a linear layer, with the same weights."
    ),
    command="python -m experiments.sweep conversions --official",
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
