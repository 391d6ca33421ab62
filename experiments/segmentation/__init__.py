"""Experiments in segmentation."""
