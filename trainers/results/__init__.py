"""What a run leaves: its folder, summary, trials, plots, and what it prints."""
