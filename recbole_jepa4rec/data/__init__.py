"""Atomic files, histories and item text: what a model is given."""
