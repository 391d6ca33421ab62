"""What a machine with a GPU is needed for, prepared: checks, timings and rungs of the ladder (`make gpu`)."""
