"""Random specs, domains and signals; every admitted lowering is held to a float64 reference. See `python -m tests.fuzz --help`."""
