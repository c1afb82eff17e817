"""Analyses of trained networks and of tickets. Nothing is trained."""
