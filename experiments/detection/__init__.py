"""Object detection: `python -m experiments.detection.bccd`."""
