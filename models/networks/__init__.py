"""The network families, made of plain PyTorch layers without masks.

`vgg` is the shortest to read. Layers have the names of published state_dicts, which can then be loaded: renaming one
breaks that, and reordering layers changes what a seed draws. Most linear layers are 1×1 convolutions for the same
reason.
"""
