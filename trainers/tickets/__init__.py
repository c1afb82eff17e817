"""Tickets (what a search returns) and their files."""
