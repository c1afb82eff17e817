"""Export trained networks for other tools, and measure what their zeros save.

Read `export` first (the mode), then `formats` (files that are compared to the network) and `savings` (measurements).
"""
