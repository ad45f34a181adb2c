"""Phases, batches, losses and trainers."""
