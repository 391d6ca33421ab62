"""Experiments on graphs larger than memory."""
