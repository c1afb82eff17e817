"""The results of a run: its folder, summary, trials, plots and printed report.

Read `run_folder` first (where a run is stored and how it is opened), then `summary` (the fields of `summary.json`). At
a run's end `trainers.pipeline` calls `summarise`, `references`, `trials`, `curves` and `screens`, in this order.
"""
