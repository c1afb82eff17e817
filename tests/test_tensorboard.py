"""How masks move, and how long batches are waited for."""

from types import SimpleNamespace

import torch

from trainers.training.tensorboard import MaskMoves, Timed


def test_distances_are_to_the_epoch_before_and_to_the_last_pruning():
    moves, found = MaskMoves(), []
    for mask, pruned in (("1111", False), ("1110", True), ("1001", False), ("0001", True), ("0001", False)):
        found.append(moves.look(torch.tensor(list(map(int, mask))).bool(), pruned))
        state, moves = moves.state(), MaskMoves()  # gone on with from a checkpoint
        moves.load_state(state, torch.device("cpu"))
    changed, distance = "mask/changed_in_epoch", "mask/distance_to_last_pruning"
    assert found == [{}, {changed: 1}, {changed: 3, distance: 3}, {changed: 1, distance: 4}, {changed: 0, distance: 0}]


def test_waiting_for_batches_is_told_from_working_on_them(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("trainers.training.tensorboard.time", SimpleNamespace(perf_counter=lambda: clock.now))

    def slow():
        for size in (3, 2):
            clock.now += 2.0
            yield torch.zeros(size), torch.zeros(size)

    batches = Timed(slow())
    for _ in batches:
        clock.now += 0.5
    assert batches.waited == 4.0
    assert batches.throughput(5) == {"throughput/images_a_second": 1.0, "throughput/waiting_for_data_percent": 80.0}
