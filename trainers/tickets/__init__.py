"""Tickets (what a search returns) and their files.

Read `ticket` first, then `recipe`, then `file` (writing, reading, drawing weights again, loading). `format` is the
layout of a ticket file, `mask_code` the compression of its masks, and `first_format` the older layout. `trained` loads
the network at the end of a run.
"""
