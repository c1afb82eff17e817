"""A run on disk: stages, checkpoints, the lock of its folder, stopping, progress."""
