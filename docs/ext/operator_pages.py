"""Generates a page for each operator, from its docstring and registry entry, and indexes of all operators."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path

from experiments.report.operators import FAMILIES, Traits, equation, family, main_operator
from ext.docstrings import inline
from ext.pictures import operator_picture
from gconv import list_operators
from gconv.operators.outside import OUTSIDE
from gconv.spec import Operator, operator

KERAS = {  # Keras 3 layers
    "adaptive_avg_pool1d": "AdaptiveAveragePooling1D", "adaptive_avg_pool2d": "AdaptiveAveragePooling2D",
    "adaptive_avg_pool3d": "AdaptiveAveragePooling3D", "adaptive_max_pool1d": "AdaptiveMaxPooling1D",
    "adaptive_max_pool2d": "AdaptiveMaxPooling2D", "adaptive_max_pool3d": "AdaptiveMaxPooling3D",
    "avg_pool1d": "AveragePooling1D", "avg_pool2d": "AveragePooling2D", "avg_pool3d": "AveragePooling3D",
    "conv1d": "Conv1D", "conv2d": "Conv2D", "conv3d": "Conv3D",
    "conv_transpose1d": "Conv1DTranspose", "conv_transpose2d": "Conv2DTranspose", "conv_transpose3d": "Conv3DTranspose",
    "depthwise": "DepthwiseConv1D, DepthwiseConv2D", "separable": "SeparableConv1D, SeparableConv2D",
    "max_pool1d": "MaxPooling1D", "max_pool2d": "MaxPooling2D", "max_pool3d": "MaxPooling3D",
    "global_pool": "GlobalAveragePooling2D, GlobalMaxPooling2D", "pad": "ZeroPadding2D, Cropping2D",
    "pointwise": "Dense", "upsample": "UpSampling2D",
}  # fmt: skip
TORCH = {  # names that differ from the operator's
    "global_pool": "nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)", "pad": "nn.ZeroPad2d, nn.ReflectionPad2d, "
    "nn.ReplicationPad2d, nn.CircularPad2d", "pointwise": "nn.Linear, nn.Conv2d(i, o, 1)",
    "depthwise": "nn.Conv2d(i, o, k, groups=i)", "adaptive_avg_pool2d": "nn.AdaptiveAvgPool2d",
    "adaptive_max_pool2d": "nn.AdaptiveMaxPool2d", "channel_shuffle": "nn.ChannelShuffle", "fold": "nn.Fold",
    "unfold": "nn.Unfold", "pixel_shuffle": "nn.PixelShuffle", "pixel_unshuffle": "nn.PixelUnshuffle",
    "upsample": "nn.Upsample",
}  # fmt: skip


def links() -> dict[str, str]:
    """The page of each operator."""
    return {name: f"/operators/{name}" for name in list_operators()}


def other_names(entry: Operator) -> dict[str, str]:
    """The names of an operator in other libraries.

    >>> other_names(operator("cheb"))
    {'PyG': 'ChebConv'}
    >>> other_names(operator("conv2d"))
    {'torch': 'nn.Conv2d', 'Keras': 'Conv2D'}
    """
    names = {
        "PyG": ", ".join(_pyg(entry)),
        "torch": TORCH.get(entry.name, _torch(entry)),
        "Keras": KERAS.get(entry.name, ""),
    }
    return {library: name for library, name in names.items() if name}


def _pyg(entry: Operator) -> list[str]:
    from gconv.interop.pyg import PEERS

    classes = {cls.__name__ for cls in PEERS}
    found = re.search(r"^Args: PyG's ([\w(), and]+)", inspect.getdoc(entry.factory) or "", re.MULTILINE)
    words = re.findall(r"\w+", found[1].replace("'s", "")) if found else []
    return [
        word for word in dict.fromkeys(w.removesuffix("s") if w not in classes else w for w in words) if word in classes
    ]


def _torch(entry: Operator) -> str:
    import torch.nn

    known = {name.lower().replace("_", ""): name for name in dir(torch.nn) if name[0].isupper()}
    name = known.get(entry.name.replace("_", ""), "")
    return f"nn.{name}" if name else ""


def _summary(entry: Operator) -> str:
    return (inspect.getdoc(entry.factory) or entry.name).splitlines()[0]


def page(entry: Operator, traits: Traits, caption: str, alt: str) -> str:
    """The page of an operator."""
    forms, kinds, linear, lowerings = traits.cells()
    facts = {
        "Forms of S": forms,
        "S is": kinds,
        "Linear": linear,
        "Lowerings": lowerings or "dense",
        **other_names(entry),
        "Source": entry.citation,
    }
    said_by = main_operator(entry)
    see = f"See :doc:`{said_by}` for the full description.\n\n" if said_by != entry.name else ""
    samples = "\n".join(f"    {sample.spec}" for sample in entry.samples())
    return (
        ":orphan:\n\n"  # listed in the indexes only; a navigation with all operators would make every page slow
        f"{entry.name}\n{'=' * len(entry.name)}\n\n"
        f"{inline(_summary(entry))}\n\n"
        f".. figure:: {entry.name}.png\n   :alt: {alt}\n\n   {inline(caption)}\n\n{see}"
        f".. autofunction:: gconv.operators.{entry.name}\n\n"
        f"{rows('Properties', facts.items())}\n\n"
        "The operator is tested with these samples, in which every option differs from its default at least once:\n\n"
        f".. code-block:: text\n\n{samples}\n\n"
        f"On the command line: ``python -m gconv explain {entry.name}``.\n"
    )


def rows(title: str, body: Iterable[tuple[str, str]], links: dict[str, str] | None = None) -> str:
    """A table of two columns."""
    lines = [f".. list-table:: {title}", "   :widths: 25 75", ""]
    for left, right in body:
        lines += [f"   * - {inline(left, links)}", f"     - {inline(right, links)}"]
    return "\n".join(lines)


def _index(title: str, text: str, body: Iterable[tuple[str, str]]) -> str:
    lines = [title, "=" * len(title), "", text, "", ".. list-table::", "   :widths: 60 40", ""]
    for left, names in body:
        lines += [f"   * - {left}", f"     - {names}"]
    return "\n".join(lines) + "\n"


def _doc(*names: str) -> str:
    return ", ".join(f":doc:`{name}`" for name in names)


def indexes(traits: dict[str, Traits]) -> dict[str, str]:
    """The index pages of operators, by file name."""
    entries = [operator(name) for name in list_operators()]
    families: dict[str, list[Operator]] = {name: [] for name in FAMILIES}
    for entry in entries:
        families[family(operator(main_operator(entry)), traits[main_operator(entry)])].append(entry)
    sections = []
    for name, members in families.items():
        table = [f"   * - {_doc(e.name)}\n     - {inline(_summary(e))}" for e in members]
        head = f"{name}\n{'-' * len(name)}\n\n.. list-table::\n   :widths: 25 75\n\n"
        sections.append(head + "\n".join(table))
    sources: dict[str, list[str]] = {}
    for entry in entries:
        sources.setdefault(entry.citation, []).append(entry.name)
    named: dict[str, dict[str, list[str]]] = {"PyG": {}, "torch": {}, "Keras": {}}
    for entry in entries:
        for library, words in other_names(entry).items():
            for word in words.split(", "):
                named[library].setdefault(word, []).append(entry.name)
    made = {
        "index": (
            "All operators\n=============\n\n"
            f"There are {len(entries)} operators. Each page has the equation, pictures of the matrix and of the "
            "receptive field of one output, conventions, names in other libraries and the source. The pages are "
            "generated from the library when this site is built.\n\n"
            "Indexes: :doc:`by equation <by-equation>`, :doc:`by source <by-source>`, "
            ":doc:`by name in PyG <by-pyg-name>`, :doc:`in torch <by-torch-name>`, "
            ":doc:`in Keras <by-keras-name>`.\n\n" + "\n\n".join(sections) + "\n\n.. toctree::\n   :hidden:\n\n"
            "   by-equation\n   by-source\n   by-pyg-name\n   by-torch-name\n   by-keras-name\n"
        ),
        "by-equation": _index(
            "Operators by equation",
            "The main equation of each operator; options are described on its page.",
            sorted((f"``{equation(e).replace('`', '')}``", _doc(e.name)) for e in entries),
        ),
        "by-source": _index(
            "Operators by source",
            "Papers and other sources, by first author.",
            [(inline(s), _doc(*n)) for s, n in sorted(sources.items())],
        ),
    }
    for library, table in named.items():
        text = f"Layers of {library} and the corresponding operators."
        body = [(f"``{word}``", _doc(*names)) for word, names in sorted(table.items())]
        if library == "PyG":
            text += " Layers outside the family of gconv are listed with the reason."
            body += [(f"``{word}``", inline(f"outside the family: {why}")) for word, why in OUTSIDE.items()]
        made[f"by-{library.lower()}-name"] = _index(f"Operators by name in {library}", text, body)
    return made


def write(folder: Path) -> None:
    """Write all pages and pictures to a folder."""
    folder.mkdir(exist_ok=True)
    traits: dict[str, Traits] = {}
    texts = {}
    for name in list_operators():
        traits[name] = Traits()
        traits[name].see(operator(name))
        texts[name] = page(operator(name), traits[name], *operator_picture(operator(name), folder / f"{name}.png"))
    for name, text in (texts | indexes(traits)).items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # Sphinx reads only changed files again
            path.write_text(text, encoding="utf-8")
