"""Analyse trained networks and tickets, without training.

Each file is one mode of `main.py`: `evaluate`, `rounding` (`--compare_rounding`), `mode_connectivity`
(`--mode_connect`) and `ticket_overlap` (`--compare_tickets`). `network_file` reads the networks.
"""
