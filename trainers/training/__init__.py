"""The training loop, and the training of scores and of weights.

Read `training` first (the hooks), then `loop` (when each is called), then `weights` and `scores` (the two kinds of
training). `position` is what a checkpoint holds; the other files each serve one of these.
"""
