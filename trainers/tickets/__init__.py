"""The ticket: what a search hands on, and its file."""
