"""The summary of a finished run, and its metrics in TensorBoard's table of hyperparameters."""

from __future__ import annotations

from typing import Any

from torch import nn

from args_helper import Config
from data.load import Splits
from trainers.algorithms import facts_of
from trainers.checks.connectivity import connectivity
from trainers.results.beginnings import devices
from trainers.results.references import find_dense, find_upright
from trainers.results.summary import AVERAGED, Outcome, Summary
from trainers.results.trials import beside_dense
from trainers.tickets.ticket import Ticket
from trainers.training.cost import forward_flops, summed
from utils.distributed.collectives import world_size
from utils.masks import kept_count, per_layer, remaining, total
from utils.run.run import Run

OF_CONFIG = ("algo", "arch", "dataset", "target_sparsity", "precision", "config_hash", "task_hash")
OF_OUTCOME = ("test_acc_before_finetune", "val_acc_before_finetune", "checks", "ticket_bytes")
"""Fields of the summary that have the same name in the config, and in what `trainers.pipeline` measured."""


def summarise(
    config: Config, run: Run, ticket: Ticket, net: nn.Module, data: Splits, outcome: dict[str, Any]
) -> Summary:
    """Compute the summary of a run.

    Args:
        config: the run's.
        run: has its rows and costs.
        ticket: that was found.
        net: plain, of the ticket's architecture.
        data: that it was trained on.
        outcome: `test_acc_before_finetune` and the same on val, `tuned` (the last row of the ticket's training, or
            None), `checks`, `search_seconds` (of a search without epochs), and `ticket_bytes` (of the ticket's
            file and its parts).

    Returns:
        The fields of `Outcome` that are known at the run's end, and the ticket's `facts`. `related` adds the dense
        network, and `trainers.results.trials.write_summary` the verdicts.
    """
    kept, whole, tuned = remaining(ticket.masks), total(ticket.masks), outcome["tuned"]
    facts = {"density_reason": None, **ticket.facts}
    scoring = facts.pop("scoring_flops", 0)  # a cost: reported with the others
    if kept == kept_count(config.density, whole):  # the target was met: there is nothing to explain
        facts["density_reason"] = None
    searching = run.seconds("search") if run.rows("search") else outcome["search_seconds"]
    flops = forward_flops(net, data.spec.shape)
    described = Outcome.model_validate({
        **{name: getattr(config, name) for name in OF_CONFIG},
        **{name: outcome[name] for name in OF_OUTCOME},
        "classes": len(data.spec.classes),
        "trial": config.trial_num,
        "as_drawn": not (
            config.algorithm.may_be_trained or config.pretrained or config.weights
            or (config.algorithm.rewinds and config.rewind_epoch)
        ),
        "seed": config.effective_seed,
        "weights_total": whole,
        "weights_remaining": kept,
        "weights_remaining_percent": 100.0 * kept / whole,
        "gem_weights_remaining": None if ticket.gem is None else remaining(ticket.gem),
        **connectivity(net, ticket.masks, data.spec.shape),
        "layers": per_layer(ticket.masks),
        "test_acc_after_finetune": tuned and tuned["test_acc"],
        "val_acc_after_finetune": tuned and tuned["val_acc"],
        "seconds": run.seconds("finetune", "check") + searching,
        "search_seconds": searching,
        "finetune_seconds": run.seconds("finetune"),
        "cost": {
            "search": {**summed(run.costs("search"), flops, searching), "scoring_flops": scoring},
            "finetune": summed(run.costs("finetune"), flops, run.seconds("finetune")),
        },
        "device": devices(run.folder),
        "world_size": world_size(),
    })  # fmt: skip
    return {**described.model_dump(exclude_unset=True), **facts}


def related(summary: Summary, config: Config) -> Summary:
    """Add to a summary the runs it is compared with: the dense run and, for an inversion, the run it inverts.

    Args:
        summary: of a finished run.
        config: the run's.

    Returns:
        A copy with `dense` and, for an inversion, `inverts`; None where no such run has ever been finished.
    """
    dense = None if facts_of(summary["algo"]).is_dense else find_dense(config)
    beside = beside_dense(summary, dense)
    if not config.invert_sanity_check:
        return beside
    upright = find_upright(config)
    own, accuracy = summary["test_acc_after_finetune"], upright and upright.summary["test_acc_after_finetune"]
    if accuracy is None or own is None:
        return {**beside, "inverts": summary.get("inverts")}  # once found, the comparison stays
    return {**beside, "inverts": {"test_acc_after_finetune": accuracy, "margin": accuracy - own,
                                  "run": str(upright.folder)}}  # fmt: skip


def log_outcome(run: Run, config: Config, summary: Summary) -> None:
    """Log the options and the final metrics to TensorBoard's table of hyperparameters."""
    deciding = config.deciding().items()
    options = {name: value if isinstance(value, int | float | str) else str(value) for name, value in deciding}
    metrics = {f"final/{name}": summary[name] for name in AVERAGED if summary[name] is not None}
    run.log_hparams(options, metrics)
