"""Sweeps: many runs by one or many workers, and searches for good options.

Read `sweep` first (the mode: plan, work, compare), then `sweep_file` (the format), `plan` (its checks), `units` (what
workers share) and `worker` (how a run gets its process). A run of the file is a `Job`: `grid.Trials`, or, if options
are sought, `search.Search`, which alone needs Optuna.
"""
