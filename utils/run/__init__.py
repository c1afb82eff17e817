"""A run on disk: its stages, its checkpoints, the lock of its folder, stopping, and progress."""
