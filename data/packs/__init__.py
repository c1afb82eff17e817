"""Packed trees of images: `pack` reads their files, `folder` looks like the folders that were packed.

`--pack` is in `packing`, which writes one file of images after another by `shards`; `--check_data` is in `checking`.
"""
