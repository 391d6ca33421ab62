"""Layers and training steps, timed: `python -m experiments.speed`."""
