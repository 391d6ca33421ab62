"""What the documentation adds to Sphinx: docstrings as reStructuredText, and the pages that are generated."""
