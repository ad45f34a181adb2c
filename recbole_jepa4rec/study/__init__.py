"""Many runs: comparison and search."""
