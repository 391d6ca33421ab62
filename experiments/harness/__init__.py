"""Code shared by all experiments: options, rows, sweeps, machine, measurements, training, rendering."""
