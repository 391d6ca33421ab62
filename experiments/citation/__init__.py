"""Networks on citation graphs: `python -m experiments.citation`."""
