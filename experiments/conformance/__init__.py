"""Matrices that different libraries apply to the same graph: `python -m experiments.conformance`."""
