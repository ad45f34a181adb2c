"""Default settings and presets, read by the package."""
