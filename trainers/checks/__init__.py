"""Sanity checks of tickets: control networks, verdicts, connectivity.

`controls` makes the networks that `trainers.pipeline` trains beside a ticket, `verdict` judges their accuracies over
trials, and `connectivity` needs no training.
"""
