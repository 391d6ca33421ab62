"""Convolutions on grids, timed: `python -m experiments.grids`."""
