"""Experiments on images, as grids and as pixel graphs."""
