"""Analyse trained networks and tickets, without training."""
