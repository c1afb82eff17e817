"""The results of a run: its folder, summary, trials, plots and printed report."""
