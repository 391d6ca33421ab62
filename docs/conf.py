"""Configuration of Sphinx; `make docs` builds the site in docs/_build/html."""

import os
import sys
import warnings
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]
os.environ.setdefault("MPLBACKEND", "agg")

from ext import hooks, operator_pages, pictures, reference_pages  # noqa: E402
from ext.docstrings import rst  # noqa: E402

import gconv  # noqa: E402

project, author, copyright = "gconv", "The gconv authors", "The gconv authors"
version = release = gconv.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_gallery.gen_gallery"]
exclude_patterns = ["_build", "README.md", "requirements.txt", "gallery", "**/GALLERY_HEADER.rst"]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
root_doc = "index"
smartquotes = False  # docstrings contain code
myst_heading_anchors = 4
suppress_warnings = ["config.cache"]  # the settings contain functions of sphinx-gallery, which cannot be cached

html_theme, html_title = "furo", "gconv"
html_static_path = ["static"]
html_css_files = ["gconv.css"]
html_copy_source = False
html_show_sphinx = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

sphinx_gallery_conf = {
    "examples_dirs": ["gallery"],
    "gallery_dirs": ["examples"],
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "reset_modules": (pictures.use_style,),
    "show_memory": False,
    "write_computation_times": False,  # that page loads scripts from other hosts
    "download_all_examples": False,
    "abort_on_example_error": True,
    "plot_gallery": True,
    "remove_config_comments": True,
    "min_reported_time": 1e9,
    "show_signature": False,
    "capture_repr": (),  # examples show what they print, not the last axis or legend
    "default_thumb_file": None,
}
warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)  # from torch
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)


def setup(app):
    """Generate pages before Sphinx reads the sources, and convert docstrings to reStructuredText."""
    links = operator_pages.links()

    def docstring(app, what, name, thing, options, lines):
        lines[:] = rst("\n".join(lines), links).split("\n")

    app.connect("autodoc-process-docstring", docstring)
    app.connect("source-read", hooks.describe_thumbnails)
    app.connect("doctree-read", hooks.link_operators)
    app.connect("builder-inited", lambda app: operator_pages.write(DOCS / "operators"))
    app.connect("builder-inited", lambda app: reference_pages.write(DOCS / "reference"))
