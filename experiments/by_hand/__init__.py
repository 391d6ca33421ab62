"""From the sum to gconv by hand: `python -m experiments.by_hand`."""
