"""Algorithms by name. The table holds plain strings, so that listing the names imports nothing."""

ALGORITHMS = {
    "hc": "trainers.algorithms.hypercube:find_ticket",
    "hc_iter": "trainers.algorithms.hypercube:find_ticket",
}
"""Name -> module:function with the signature `find_ticket(net, data, config, run) -> Ticket`."""
