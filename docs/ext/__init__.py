"""Extensions of Sphinx for this documentation: docstrings as reStructuredText, and generated pages."""
