"""Checks, timings and training for a machine with a GPU (`make gpu`)."""
