"""What every experiment shares: options, rows, sweeps, the machine, measuring, training, rendering."""
