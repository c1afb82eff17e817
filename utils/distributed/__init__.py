"""Distributed training: how its processes were started, and what they exchange."""
