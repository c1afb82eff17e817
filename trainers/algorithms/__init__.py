"""Algorithms by name: plain strings, so that listing them imports nothing. `load` imports one."""

ALGORITHMS = {
    "hc": "trainers.algorithms.hypercube:find_ticket",
    "hc_iter": "trainers.algorithms.hypercube:find_ticket",
    "ep": "trainers.algorithms.edge_popup:find_ticket",
    "global_ep": "trainers.algorithms.edge_popup:find_ticket",
    "global_ep_iter": "trainers.algorithms.edge_popup:find_ticket",
    "cts": "trainers.algorithms.cts:find_ticket",
    "imp": "trainers.algorithms.imp:find_ticket",
    "training": "trainers.algorithms.dense:find_ticket",
    "smart_ratio": "trainers.algorithms.smart_ratio:find_ticket",
    "random": "trainers.algorithms.random_mask:find_uniform_ticket",
    "random_erk": "trainers.algorithms.random_mask:find_erk_ticket",
    "random_subnet": "trainers.algorithms.random_mask:find_random_subnet",
    "magnitude": "trainers.algorithms.magnitude:find_ticket",
    "snip": "trainers.algorithms.snip:find_ticket",
    "grasp": "trainers.algorithms.grasp:find_ticket",
    "synflow": "trainers.algorithms.synflow:find_ticket",
    "given": "trainers.algorithms.from_file:find_ticket",
}
"""Name -> module:function with the signature `find_ticket(net, data, config, run) -> Ticket`."""

CTS_SEARCH = {"optimizer": "adam", "lr": 0.1, "lr_policy": "multistep_lr", "wd": 0.0}
"""How the authors of `cts` run its search: what these options are for it unless they are given."""
