"""Random cases, in which every admitted lowering is held to a float64 reference: `python -m tests.fuzz --help`."""
