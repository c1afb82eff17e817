"""Processes that train together: how they were started, and what they exchange."""
