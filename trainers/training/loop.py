"""The training loop and evaluation: the only performance-critical code.

`train` is what algorithms and the pipeline call, once per stage. A step only queues work on the device; the host reads
from it once per epoch, or when a checkpoint is written. `trainers.training.training` lists the hooks in their order.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from data.load import Splits
from data.normalise import Batch
from trainers.training.batchnorm import average_statistics
from trainers.training.divergence import NotFinite, warn_of_collapse, watched
from trainers.training.epoch_row import EpochRow
from trainers.training.position import Position
from trainers.training.tensorboard import Timed, show
from trainers.training.training import Training
from utils.distributed import collectives as ranks
from utils.distributed.consistency import assert_same_on_all_ranks
from utils.environment import mixed
from utils.errors import Diverged, counted, is_out_of_memory
from utils.run.run import Row, Run


def train(run: Run, stage: str, training: Training, data: Splits, epochs: int, first_epoch: int = 0) -> None:
    """Train a stage to its end, from its checkpoint if there is one; return at once if it is finished.

    Args:
        run: where the stage is stored.
        stage: its name; its random streams and checkpoints are filed under it.
        training: fresh; afterwards, also when the stage was finished before, it is as the stage left it.
        data: what to train on, and to measure on.
        epochs: the epoch at which the stage ends; it trains `first_epoch` to `epochs` − 1.
        first_epoch: of the stage, above 0 if it continues the schedule of another.

    Raises:
        Stopped: the run was asked to stop; the step that it reached is saved.
        Diverged: the loss or a weight is no longer finite; the last checkpoint is from before.
        UserError: the checkpoint cannot be read, or a file cannot be written.
        DistributedError: another rank is lost, or its state differs.
    """
    try:
        position = Position(run, stage, training, data.train.device, first_epoch)
    except NotFinite as found:
        raise Diverged(f"{stage} cannot begin: {found} is not finite in the weights that it begins with") from None
    if position.done:
        if position.epoch != epochs and not training.over:
            warnings.warn(
                f"{stage} had ended after {counted(position.epoch, 'epoch')} and stays so, not {epochs}", stacklevel=2
            )
        return
    # Never in the middle of an epoch: no row would have the accuracy of the weights that it ends with.
    if (begun := position.epoch + (position.step > 0)) > epochs:
        told = f"{stage} had begun {counted(begun, 'epoch')} and ends with the last of them, not after {epochs}"
        warnings.warn(told, stacklevel=2)
        epochs = begun
    own = ranks.own_part(0, data.train.size(0))
    training.full_batch = most_parts(own.stop - own.start, training.accumulate)
    assert_same_on_all_ranks(training.network.state_dict(), f"where {stage} begins or goes on")
    try:
        _train(run, stage, training, data, epochs, position)
    except NotFinite:
        # To find the layer, repeat the steps since the last checkpoint and check every layer.
        again = Position(run, stage, training, data.train.device, first_epoch, is_fresh=False)
        training.full_batch = 0  # never compiled
        where = "a value, though not when this was run again,"
        try:
            with watched(training.network, training.optimizer):
                _train(run, stage, training, data, position.epoch + 1, again)
        except NotFinite as found:
            position, where = again, str(found)
        way_out = "begin again, or go on from there with --resume_anyway, at a lower learning rate"
        if stage.startswith("check/"):  # trained otherwise than the ticket, it would be no control
            way_out = "--resume with --skip_sanity_checks ends the run without any checks"
        raise Diverged(
            f"{stage} has diverged: {where} is not finite in epoch {position.epoch}, step {position.step}, at lr "
            f"{training.lr(position.epoch):g}. The last good checkpoint is kept in {run.folder}; {way_out}"
        ) from None
    position.finish()


def _train(run: Run, stage: str, training: Training, data: Splits, epochs: int, position: Position) -> None:
    with run.progress(stage, epochs, len(data.train)) as progress:
        while position.epoch < epochs and not training.over:
            epoch, started = position.epoch, time.perf_counter()
            draw = partial(run.rng, stage, epoch=epoch)
            for group in training.optimizer.param_groups:
                group["lr"] = training.lr(epoch)
            if position.step == 0:  # else the epoch was resumed, and what this hook did is in the restored state
                training.before_epoch(epoch)

            training.network.train()
            first = position.step
            batches = Timed(data.train.epoch(draw("batches"), position.step, shared=True))
            for images, labels in batches:
                # Not before the first step: the epoch before has asked at its end.
                stop, store = run.asked(stage) if position.step else (0, False)
                if stop or store:
                    position.save(started)
                if stop:
                    run.stop(stop)
                progress.at(epoch, position.step)
                whole = data.train.size(position.step)
                # Layers such as Dropout draw from PyTorch's own generator.
                torch.manual_seed(run.rng(stage, f"network {ranks.rank()}", epoch, position.step).initial_seed())
                position.meter += train_step(training, position.step, images, labels, whole)
                position.step += 1
            training.after_steps()
            average_statistics(training.network)
            position.check()  # on a GPU, this also waits for all queued work
            speed = batches.throughput(sum(map(data.train.size, range(first, position.step))))

            loss, correct, seen = position.meter.tolist()
            trained = {"lr": training.lr(epoch), "train_acc": 100.0 * correct / seen, "train_loss": loss / seen}
            measured = {**trained, **training.measure(data, draw)}
            position.count_epoch()
            training.after_epoch(epoch, draw)
            assert_same_on_all_ranks(training.network.state_dict(), f"after epoch {epoch} of {stage}")
            seconds = round(position.seconds + time.perf_counter() - started, 3)
            row = EpochRow(phase=stage, epoch=epoch, seconds=seconds, **measured).model_dump()
            # Before the checkpoint: resuming drops events that are logged twice.
            show(run, stage, training, row, speed)
            stop, store = run.asked(stage, epoch)
            position.next_epoch(row, bool(stop or store))
            progress.epoch_done(epoch, _metrics(row))
            warn_of_collapse(stage, position.rows, len(data.spec.classes))
            if stop:
                run.stop(stop)


def train_step(training: Training, step: int, images: Tensor, labels: Tensor, whole: int | None = None) -> Tensor:
    """Run one training step, without waiting for the device.

    Args:
        training: what to train.
        step: 0-based in its epoch.
        images, labels: a batch, or this rank's part of one, which may be empty.
        whole: number of images in the whole batch.

    Returns:
        (3,) on the device: summed loss, correct predictions and images of the whole batch.
    """
    training.before_step(step)
    counts, whole = torch.zeros(3, device=images.device), whole or len(labels)
    parts = ranks.in_parts(len(labels), training.accumulate)
    for part, targets in zip(images.tensor_split(parts), labels.tensor_split(parts)) if len(labels) else ():
        logits = training.forward(part)
        loss = training.loss(logits, targets, part)
        # Gradients add up over parts and ranks: each mean is weighted by its share of the batch, so the sum is the
        # gradient of the mean over the whole batch.
        (loss if len(targets) == whole else loss * (len(targets) / whole)).backward()
        correct = (logits.detach().argmax(1) == targets).sum()
        counts += torch.stack([loss.detach() * len(targets), correct, loss.new_full((), len(targets))])
    if ranks.is_distributed():
        ranks.all_reduce_in_place([counts, *training.gradients])
    # After the sum: every rank computes the same penalty, and its gradient counts once.
    if (penalty := training.penalty()) is not None:
        penalty.backward()
    training.update()
    # Zeros in place, not None: the gradients are views of `training.gradients`.
    training.optimizer.zero_grad(set_to_none=False)
    training.after_step()
    return counts


def most_parts(count: int, parts: int) -> int:
    """The most frequent size of the parts that `tensor_split` makes of `count` images; if tied, the larger."""
    parts = ranks.in_parts(count, parts)
    each, larger = divmod(count, parts)
    return each + (2 * larger >= parts)


@torch.inference_mode()
def evaluate(network: nn.Module, batches: Iterable[Batch] | None, precision: str = "fp32") -> float | None:
    """Top-1 accuracy in percent, in evaluation mode; None without batches. One read from the device.

    Each rank passes its own batches; all ranks get the accuracy on all batches. If a batch does not fit into memory, it
    and those after it go through the network in parts.

    Args:
        network: on the device of the batches.
        batches: normalised images and labels.
        precision: of the forward passes, as the option `precision`.

    Raises:
        RuntimeError: out of memory with a single image too.
    """
    if batches is None:
        return None
    was_training = network.training
    network.eval()
    correct, count, parts = 0, 0, 1
    for images, labels in batches:
        with mixed(precision, images.device):
            predicted, parts = _predicted(network, images, parts)
        correct, count = correct + (predicted == labels).sum(), count + len(labels)
    network.train(was_training)
    counts = torch.tensor([int(correct), count])
    ranks.all_reduce_in_place([counts])
    correct, count = counts.tolist()
    return 100.0 * correct / count


def _predicted(network: nn.Module, images: Tensor, parts: int) -> tuple[Tensor, int]:
    """The class of every image, and the number of parts that fit in memory; when out of memory, it is doubled."""
    while True:
        try:
            return torch.cat([network(part).argmax(1) for part in images.chunk(parts)]), parts
        except RuntimeError as error:
            if not is_out_of_memory(error) or parts >= len(images):
                raise
            parts *= 2


def _metrics(row: Row) -> dict[str, str]:
    return {
        "loss": f"{row['train_loss']:.3f}",
        "train": f"{row['train_acc']:.1f}%",
        "test": f"{row['test_acc']:.1f}%",
        "remaining": f"{row['model_sparsity']:.2f}%",
    }
