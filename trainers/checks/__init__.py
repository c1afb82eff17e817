"""Sanity checks of tickets: control networks, verdicts, connectivity."""
