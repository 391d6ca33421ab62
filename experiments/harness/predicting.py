"""Code shared by the `predict` commands: network files, pictures and error messages.

A network is one file of `gconv.save` in float16, optionally with a description in NAME.json.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

import gconv
from datasets.root import DataError
from experiments.harness.machine import ROOT
from experiments.harness.options import RUNS
from experiments.harness.store import replace_file
from gconv.errors import InputError

FOLDER = ROOT / "experiments" / "checkpoints"
MODULES = TypeVar("MODULES", bound=nn.Module)


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Turn errors that a user can correct into a one-line message. Raises: SystemExit.

    >>> with one_sentence():
    ...     raise ValueError("the sentence is empty")
    Traceback (most recent call last):
        ...
    SystemExit: error: the sentence is empty
    """
    try:
        yield
    except OSError as error:
        said = f"{error.strerror}: {error.filename}" if error.strerror and error.filename else error.strerror or error
        raise SystemExit(f"error: {said}") from None
    except (DataError, InputError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


def checked_picture(path: Path | None) -> None:
    """Check that a picture can be written. Raises: ValueError."""
    if path is not None and path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--out must end in .png or .jpg, and {path} does not")


# -- files ---------------------------------------------------------------------------------------------------------


def place(name: str) -> Path:
    """The path of a network: in the committed checkpoints, else in the user's folder."""
    committed = FOLDER / f"{name}.safetensors"
    return committed if committed.is_file() else RUNS / committed.name


def written(model: nn.Module, path: Path, description: dict[str, Any] | None = None) -> None:
    """Write a network in float16 and its description. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if description is not None:
        text = json.dumps(description, ensure_ascii=False, separators=(",", ":"))
        replace_file(path.with_suffix(".json"), text.encode())
    gconv.save(model.half(), path)
    model.float()


def restored(path: Path, model: MODULES) -> MODULES:
    """Load a network from a file, in float32 and eval mode, into `model`. Raises: InputError, OSError."""
    gconv.load(path, into=model.half())
    return model.float().eval()


def described(path: Path, form: str, what: str, train: str) -> dict[str, Any]:
    """Read the description of a network file.

    Args:
        path: path of the network file.
        form: expected format and version.
        what: a noun phrase for messages, for example "a translation network".
        train: the command that writes such files.

    Raises: ValueError if a file is missing or has another format.
    """
    description = path.with_suffix(".json")
    if missing := [str(p) for p in (path, description) if not p.is_file()]:
        raise ValueError(f"there is no checkpoint {' and no '.join(missing)}; `{train}` writes one")
    try:
        text: dict[str, Any] = json.loads(description.read_bytes())
        found = text["format"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{description} is not the description of {what}") from None
    if found != form:
        raise ValueError(f"{description} is of the format {str(found)[:40]!r}, and this version reads {form!r}")
    return text


def fitting(path: Path, model: MODULES) -> MODULES:
    """`restored` for a network with a description. Raises: ValueError if the two do not belong together."""
    try:
        return restored(path, model)
    except (OSError, ValueError, TypeError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"{path} does not fit {path.with_suffix('.json')}: {said}") from None


# -- photos and pictures -------------------------------------------------------------------------------------------


def shrunk(photo: Tensor, long_side: int, least: int, shows: str) -> tuple[Tensor, float]:
    """Resize a uint8 photo (3, h, w) to a batch of one with longer side `long_side`. Returns: the batch and the scale.

    Raises: ValueError if one side is more than 20 times the other, or shorter than `least` pixels.
    """
    h, w = photo.shape[-2:]
    if min(h, w) < least or max(h, w) > 20 * min(h, w):
        raise ValueError(f"A photo of {w} x {h} pixels is too small or too narrow to show {shows}.")
    scale = long_side / max(h, w)
    small = photo[None].float()
    if scale != 1:
        size = [max(1, round(side * scale)) for side in (h, w)]
        small = F.interpolate(small, size, mode="bilinear", antialias=scale < 1)
    return small.round(), scale


def bars(path: Path, names: Sequence[str], values: Sequence[float], title: str, photo: Tensor | None = None) -> None:
    """Draw a bar chart of named numbers next to a uint8 photo (3, h, w). Raises: OSError."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(5 + 3 * (photo is not None), 1 + 0.3 * len(names)), layout="constrained")
    *left, axes = canvas.subplots(1, 1 + (photo is not None), squeeze=False)[0]
    if photo is not None:
        left[0].imshow(photo.permute(1, 2, 0).numpy())
        left[0].set_axis_off()
    axes.barh(range(len(names)), values, color=["tab:blue" if v >= 0 else "tab:red" for v in values])
    axes.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
    axes.invert_yaxis()
    axes.set_title(title.replace("$", r"\$"), fontsize="medium")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # characters that the font lacks
        canvas.savefig(path, dpi=120)
