"""Distributed training: how its processes were started, and what they exchange.

Read `launch` first (what torchrun tells a process), then `collectives`. In a single process every function of
`collectives` returns at once what that process has, so callers hardly need to know how many there are.
"""
