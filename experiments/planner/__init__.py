"""Experiments on the planner: its choices compared with measured candidates."""
