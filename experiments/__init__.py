"""Experiments: one folder per family, with a shared harness. Example: `python -m experiments.citation --help`."""
