"""Trained networks for other tools, and what their zeros save."""
