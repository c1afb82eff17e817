"""Tickets (what a search returns) and their files.

Read `ticket` first, then `recipe`, then `file` (writing, reading, loading). `format` is the layout of a ticket file,
`mask_code` the compression of its masks, `redraw` how weights that follow from a seed are left out, and `first_format`
the older layout. `trained` loads the network at the end of a run.
"""
