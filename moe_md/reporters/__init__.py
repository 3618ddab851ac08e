"""Reporters for `simulate.run`: log, trajectory, H5MD and restart files."""
