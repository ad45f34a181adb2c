"""Several models side by side: every run of a grid, and what their results say together."""
