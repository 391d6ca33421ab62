"""Convolution step by step, from the definition to gconv: `python -m experiments.by_hand`."""
