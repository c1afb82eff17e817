"""Algorithms by name. The table holds plain strings, so that listing the names imports nothing."""

ALGORITHMS = {
    "hc": "trainers.algorithms.hypercube:find_ticket",
    "hc_iter": "trainers.algorithms.hypercube:find_ticket",
    "ep": "trainers.algorithms.edge_popup:find_ticket",
    "global_ep": "trainers.algorithms.edge_popup:find_ticket",
    "global_ep_iter": "trainers.algorithms.edge_popup:find_ticket",
    "smart_ratio": "trainers.algorithms.smart_ratio:find_ticket",
    "random": "trainers.algorithms.random_mask:find_uniform_ticket",
    "random_erk": "trainers.algorithms.random_mask:find_erk_ticket",
    "magnitude": "trainers.algorithms.magnitude:find_ticket",
    "snip": "trainers.algorithms.snip:find_ticket",
    "grasp": "trainers.algorithms.grasp:find_ticket",
    "synflow": "trainers.algorithms.synflow:find_ticket",
}
"""Name -> module:function with the signature `find_ticket(net, data, config, run) -> Ticket`."""
