"""A run on disk: its stages, its checkpoints, the lock of its folder, stopping, and progress.

Read `run` first: it is what algorithms and the training loop see. `checkpoints`, `stopping` and `progress` are its
parts; `lock` keeps other processes out of the folder.
"""
