"""Boxes around what is in a photo."""
