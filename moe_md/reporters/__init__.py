"""What a run writes: log, trajectory, H5MD, restart files."""
