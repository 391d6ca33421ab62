"""Files that commands write: checked before the work, and written whole or not at all. Checks of other options."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def check_output(option: str, path: Path | None, parents: bool = False, others: Sequence[Path | None] = ()) -> None:
    """Check that a file can be written, before the work whose result it will contain.

    Args:
        option: the option that names the file, for messages.
        path: the file, or None.
        parents: whether missing folders will be created.
        others: files that the command reads or writes, none of which may be replaced.

    Raises: ValueError, OSError.

    >>> check_output("--out", Path("nowhere/areas.png"))
    Traceback (most recent call last):
        ...
    ValueError: --out nowhere/areas.png: there is no folder nowhere; create it, or give another file
    """
    if path is None:
        return
    check_not_folder(option, path)
    same = [other for other in others if other is not None and os.path.realpath(other) == os.path.realpath(path)]
    if same and not (path.exists() and not path.is_file()):  # devices can be named twice
        raise ValueError(f"{option} {path} would replace {same[0]}, which is read or written too; give another file")
    folder = path.parent
    while parents and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        what = f"{folder} is not a folder; " if folder.exists() else f"there is no folder {folder}; create it, or "
        raise ValueError(f"{option} {path}: {what}give another file")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written: there is no permission; give another file")


def check_network(path: Path) -> None:
    """`check_output` for --checkpoint, a network of two files, NAME.safetensors and NAME.json."""
    check_output("--checkpoint", path, parents=True)
    description = path.with_suffix(".json")
    if path == description:
        raise ValueError(f"--checkpoint {path} is the name of the description; name the weights, such as x.safetensors")
    check_output("--checkpoint", description, parents=True)


def check_not_folder(option: str, path: Path | None) -> None:
    """Check that an input is not a folder (as the empty path is). Raises: ValueError.

    >>> check_not_folder("--checkpoint", Path(""))
    Traceback (most recent call last):
        ...
    ValueError: --checkpoint . is a folder; give the name of a file
    """
    if path is not None and path.is_dir():
        raise ValueError(f"{option} {path} is a folder; give the name of a file")


def check_size(path: Path, network: Callable[[], "nn.Module"]) -> None:
    """Check that the file is large enough for the weights of a network, before they are allocated. Raises: ValueError.

    Args:
        path: the file, with weights of 16 bits.
        network: makes the network from the description next to the file.
    """
    import torch

    with torch.device("meta"):
        count = sum(weight.numel() for weight in network().parameters())
    if 2 * count > (size := path.stat().st_size):
        raise ValueError(f"it does not fit {path.name}: it has {count:,} weights, and the file has {size:,} bytes")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, which replaces the file if the block succeeds and is removed otherwise.

    Devices and pipes, for example /dev/stdout, are written directly. Raises: OSError that names the file.
    """
    if path.exists() and not path.is_file():
        try:
            yield path
        except OSError as error:
            raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
        return
    place = Path(os.path.realpath(path))  # a link is kept
    part = place.with_name(f"{place.stem}.{os.getpid()}.part{path.suffix}")  # the format is that of the given name
    try:
        yield part
        os.replace(part, place)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def refuse_together(option: str, given: dict[str, Any]) -> None:
    """Check that options without effect next to another one are not given. Raises: ValueError.

    >>> refuse_together("--train", {"a photo": None, "--out": "x.png"})
    Traceback (most recent call last):
        ...
    ValueError: --train goes without --out
    """
    if extra := [name for name, value in given.items() if value]:
        raise ValueError(f"{option} goes without {' and '.join(extra)}")
