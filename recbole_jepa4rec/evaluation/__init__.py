"""Exact ranks, results, and trained models at work."""
