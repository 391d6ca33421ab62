"""Converts the library's docstrings, which are plain text, to reStructuredText.

Equations and indented text become literal blocks, words in backticks become code, names of operators become links, and
the sections (Meaning, Traps, Args, ...) get bold labels. Everything else is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

PARTS = (
    "Args", "Between two sets of nodes", "Cost", "Equation", "In the family", "Meaning", "Outside the family", "Raises",
    "Reference", "Returns", "Shapes", "Source", "Trap", "Traps", "Yields",
)  # fmt: skip
PART = re.compile(rf"({'|'.join(PARTS)}): *(.*)")
ENTRY = re.compile(r"(\*{0,2}\w[\w, .\[\]]*?): +(.*)")
MARKER = re.compile(r"(\(?[\w#]{1,4}[.)]|[-+*•|:]|\.\.|>>>|[=-~^\"`'.]{2,}$)")


def rst(text: str, links: dict[str, str] | None = None) -> str:
    """A docstring without indentation, as reStructuredText.

    Args:
        text: a docstring as returned by `inspect.getdoc`.
        links: the page to link to, for each name that occurs in backticks.

    >>> print(rst("One line.\\n\\nEquation: y = A|x|*\\n\\nTraps: as in `gcn`."))
    One line.
    <BLANKLINE>
    **Equation**
    <BLANKLINE>
    .. code-block:: text
    <BLANKLINE>
        y = A|x|*
    <BLANKLINE>
    **Traps.** as in \\ ``gcn``\\ .
    """
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    return "\n\n".join(piece for block in blocks for piece in _block(block.split("\n"), links or {}))


def inline(text: str, links: dict[str, str] | None = None) -> str:
    """A line of prose, in which only backticks are interpreted as markup."""
    made = []
    for piece in re.split(r"(``[^`]+``|`[^`]+`)", text):
        if len(piece) > 2 and piece[0] == piece[-1] == "`":
            name = piece.strip("`")
            page = (links or {}).get(name)
            made.append(f"\\ :doc:`{name} <{page}>`\\ " if page else f"\\ ``{name.strip()}``\\ ")
        else:
            made.append(re.sub(r"([\\*_|`])", r"\\\1", piece))
    joined = re.sub(r"::(\s*)$", r":\\:\1", "".join(made))
    return f"\\ {joined}" if MARKER.match(joined) else joined.removesuffix("\\ ") if text.endswith("`") else joined


def _literal(lines: list[str], language: str = "text") -> str:
    return f".. code-block:: {language}\n\n" + "\n".join(f"    {line}".rstrip() for line in lines)


def _block(lines: list[str], links: dict[str, str]) -> Iterator[str]:
    """The blocks of reStructuredText for one paragraph of a docstring."""
    if lines[0].startswith(">>>"):
        yield _literal(lines, "pycon")
    elif found := PART.match(lines[0]):
        yield from _part(found[1], found[2], lines[1:], links)
    elif lines[0].startswith("- "):
        items = re.split(r"\n(?=- )", "\n".join(lines))
        yield "\n".join(f"- {inline(' '.join(item[2:].split()), links)}" for item in items)
    elif any(line.startswith("  ") for line in lines):
        yield _literal(_dedent(lines))
    else:
        yield inline(" ".join(lines), links)


def _part(name: str, first: str, rest: list[str], links: dict[str, str]) -> Iterator[str]:
    following = [i for i, line in enumerate(rest) if PART.match(line)]
    if following:  # two parts in one paragraph
        yield from _part(name, first, rest[: following[0]], links)
        yield from _block(rest[following[0] :], links)
    elif name == "Equation":
        yield f"**{name}**"
        yield _literal([first, *rest] if first else _dedent(rest))
    elif rest and rest[0].startswith("    "):
        yield f"**{name}**"
        indented = [line for line in rest if line.startswith("    ") or not line]
        if first:
            yield inline(first, links)
        yield _entries(_dedent(indented), links)
        if rest[len(indented) :]:
            yield inline(" ".join(rest[len(indented) :]), links)
    else:
        yield f"**{name}.** {inline(' '.join([first, *rest]), links)}"


def _entries(lines: list[str], links: dict[str, str]) -> str:
    """Entries `name: text` with indented continuation lines, as a list."""
    items: list[str] = []
    for line in lines:
        if items and line.startswith(" "):
            items[-1] += f" {line.strip()}"
        else:
            items.append(line)
    made = []
    for item in items:
        entry = ENTRY.fullmatch(item)
        made.append(f"- ``{entry[1]}``: {inline(entry[2], links)}" if entry else f"- {inline(item, links)}")
    return "\n".join(made)


def _dedent(lines: list[str]) -> list[str]:
    depth = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [line[depth:] for line in lines]
