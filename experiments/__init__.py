"""One readable script a table: `python -m experiments.NAME --help`."""
