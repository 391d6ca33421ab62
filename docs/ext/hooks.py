"""Changes to pages while Sphinx reads them: the pictures of the gallery get texts, names of operators get links."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

from ext.operator_pages import links

THUMBNAIL = re.compile(r"^( +):alt:\n(.*?sphx-glr-thumbnail-title\">)(.*?)(</div>)", re.DOTALL | re.MULTILINE)


def describe_thumbnails(app: Sphinx, name: str, source: list[str]) -> None:
    """The alternative text of each picture of the gallery is the title of the example."""
    if name == "examples/index":
        source[0] = THUMBNAIL.sub(r"\1:alt: \3\n\2\3\4", source[0])


def link_operators(app: Sphinx, page: nodes.document) -> None:
    """In the tables of operators, each name leads to the page of the operator."""
    if app.env.docname != "operators":
        return
    pages = links()
    for name in list(page.findall(nodes.literal)):
        if name.astext() in pages:
            where = {"refdoc": "operators", "refdomain": "std", "reftype": "doc", "reftarget": pages[name.astext()]}
            link = addnodes.pending_xref(**where, refexplicit=True, refwarn=True)
            name.replace_self(link)
            link += name
