"""Where libraries apply different matrices to one graph: `python -m experiments.conformance`."""
