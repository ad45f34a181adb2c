"""Item sentences and item vectors: text made ready for encoders."""
