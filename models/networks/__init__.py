"""Families of networks: plain PyTorch layers, no masks."""
