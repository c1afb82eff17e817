"""Sweeps: run many experiments with many workers, and search for good options."""
