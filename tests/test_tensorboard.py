"""How masks move, and how long batches are waited for."""

import time

import pytest
import torch

from trainers.training.tensorboard import MaskMoves, Timed


def bits(text):
    return torch.tensor([letter == "1" for letter in text])


def test_distances_are_to_the_epoch_before_and_to_the_last_pruning():
    moves, found = MaskMoves(), []
    for mask, pruned in (("1111", False), ("1110", True), ("1001", False), ("0001", True), ("0001", False)):
        found.append(moves.look(bits(mask), pruned))
        again = MaskMoves()  # gone on with from a checkpoint
        again.load_state(moves.state(), torch.device("cpu"))
        moves = again
    changed, distance = "mask/changed_in_epoch", "mask/distance_to_last_pruning"
    assert found == [{}, {changed: 1}, {changed: 3, distance: 3}, {changed: 1, distance: 4}, {changed: 0, distance: 0}]


def test_waiting_for_batches_is_told_from_working_on_them():
    def slow():
        for size in (3, 2):
            time.sleep(0.05)
            yield torch.zeros(size), torch.zeros(size)

    batches = Timed(slow())
    for _ in batches:
        time.sleep(0.05)
    speed = batches.throughput()
    assert batches.images == 5 and batches.waited >= 0.1
    assert speed["throughput/images_a_second"] <= 25
    assert speed["throughput/waiting_for_data_percent"] == pytest.approx(50, abs=40)
