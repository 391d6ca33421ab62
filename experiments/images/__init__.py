"""Images, as grids and as graphs of pixels."""
