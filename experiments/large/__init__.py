"""Experiments with large models, and with pretrained ones."""
