"""Translation of sentences by convolutions, attention and graph convolutions."""
