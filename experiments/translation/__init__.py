"""Translation with convolutions, attention and graph convolutions."""
