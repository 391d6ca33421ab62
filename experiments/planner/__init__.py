"""The planner: its choices against measured candidates."""
