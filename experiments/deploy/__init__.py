"""What becomes of a trained network on another machine."""
