"""Experiments, a family a folder, on one harness: `python -m experiments.citation --help`."""
