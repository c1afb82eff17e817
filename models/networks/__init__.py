"""The network families, made of plain PyTorch layers without masks."""
