"""What a network looked at: attributions, and the tests that they must pass."""
