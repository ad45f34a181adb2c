"""Runs that are killed, told to end, or run out of disk: what they leave, and how they go on."""
