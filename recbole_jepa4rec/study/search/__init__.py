"""Search for hyper-parameters with Ray Tune: validation decides, the winner alone is tested."""
