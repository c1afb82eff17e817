"""Sweeps: many runs by many workers, and the search for good options."""
