"""Speed and memory of layers, training steps and models: `python -m experiments.speed`."""
