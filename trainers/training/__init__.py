"""The training loop, and the training of scores and of weights."""
