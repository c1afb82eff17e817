"""The training of Gem-Miner's scores: the moving threshold, the prunings, and what is logged and saved of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from args_helper import Config
from data.load import Splits
from models.layers import Round, Rule, Soft
from models.masking import masked_layers
from trainers.algorithms.auto_lambda import AutoLambda
from trainers.checks.connectivity import warn_of_thin_layers
from trainers.training.scores import ScoreTraining
from trainers.training.training import Draw
from utils.masks import Masks, ceil_count, kept_count, kth_lowest, prune_exactly, prune_lowest
from utils.run.run import Row
from utils.schedules import pruning_epochs, pruning_rate

Effective = Callable[[Masks], Masks]
MOST_TURNS = 20
"""How often a pruning is repeated at most, so that no weight is cut off; where it was necessary, 1 to 7 times were."""


def prunings_ahead(config: Config) -> range:
    """Return the epochs (0-based) after which the search prunes, from `start_epoch` on."""
    return pruning_epochs(config.epochs, config.iter_period, max(config.iter_start, config.start_epoch - 1))


def pruning_rate_from(config: Config, unpruned: float) -> float:
    """Return the fraction of the unpruned weights that each pruning removes.

    Args:
        config: the options of the search.
        unpruned: the fraction of all weights that is unpruned when the search begins, in [0, 1].

    Returns:
        p = 1 − (d / unpruned)^(1/k) for the k prunings ahead, so that they end at density d; 0 without any ahead, and
        where fewer weights than the target are unpruned already. With `override_prune_rate`: `prune_rate`.

    Source: Rare Gems (arXiv 2202.12002), Algorithm 1, for unpruned = 1.
    """
    if config.override_prune_rate:
        return config.prune_rate
    ahead = len(prunings_ahead(config))
    return pruning_rate(config.density / max(unpruned, config.density), ahead) if ahead else 0.0


def exact_count(config: Config, rate: float, unpruned: int, whole: int, last: bool) -> int:
    """Return how many of `unpruned` entries a pruning by ExactBottomK removes: ⌈p·n⌉, but none below ⌊dN⌋.

    Args:
        config: with the target d; with `override_prune_rate` there is none.
        rate: p.
        unpruned: n.
        whole: N.
        last: whether it is the last pruning, which leaves ⌊dN⌋.
    """
    count = ceil_count(rate, unpruned)
    if config.override_prune_rate:
        return count
    above_target = max(0, unpruned - kept_count(config.density, whole))
    return above_target if last else min(count, above_target)


class GemMiner(ScoreTraining):
    """Learns scores, prunes the lowest every `iter_period` epochs, and resets scores afterwards if `rewind_score`.

    Args:
        network: masked, on its device.
        config: the options of the search.
        auto: steers λ; the threshold is then lowered where fewer than ⌊dN⌋ weights would be switched on.
        effective: masks -> the same without weights that are cut off from input or output: prunings by ExactBottomK
            remove these first. None: they go by scores alone.

    Attributes:
        weights: number of prunable weights, N, without biases.
    """

    younger_state = ("lmbda",)

    def __init__(
        self, network: nn.Module, config: Config, auto: AutoLambda | None = None, effective: Effective | None = None
    ) -> None:
        self._auto, self.decoupled_decay = auto, auto is not None
        self._effective = effective
        self._moves_threshold = config.bottom_k_on_forward or auto is not None
        self._snapshot: Tensor | None = None
        self._tied = 0
        self._thin: set[str] = set()
        super().__init__(network, self._rule(network, config), config, auto.first if auto else None)
        self._target = kept_count(config.density, self.flat.segments[0].stop)
        self.weights = self.flat.segments[0].stop
        self._prunings = prunings_ahead(config) if config.algo == "hc_iter" else range(0)
        unpruned = int(self.flat.flags[self.flat.segments[0]].sum())
        self._rate = pruning_rate_from(config, unpruned / self.weights)
        self._out_of_reach = self._why_out_of_reach(unpruned)
        if self._out_of_reach:
            warnings.warn(f"the target of {config.target_sparsity:g}% is missed: {self._out_of_reach}", stacklevel=2)
        self._flags_changed()

    def _rule(self, network: nn.Module, config: Config) -> Rule:
        if not config.hc_quantized:
            return Soft(config.quantize_threshold)
        if self._moves_threshold:  # a threshold that follows the scores; a tensor, so that no step reads it back
            return Round(torch.zeros((), device=next(network.parameters()).device))
        return Round(config.quantize_threshold)

    def _why_out_of_reach(self, unpruned: int) -> str | None:
        """Say why the prunings ahead cannot end at the target; None if they can or need not."""
        config, target = self._config, self._target
        if config.algo == "hc" or config.override_prune_rate or config.prune_type == "FixThresholding":
            return None
        if unpruned < target:
            return f"only {unpruned:,} weights were unpruned when the search began"
        if unpruned > target and not self._prunings:
            return f"start_epoch {config.start_epoch} lies after the last pruning, that of epoch {config.prunings[-1]}"
        return None

    # ---- steps -------------------------------------------------------------------------------------------------------

    def before_epoch(self, epoch: int) -> None:
        """Take the snapshot for resetting scores; with `drop_bottom_half_weights`, score by magnitude at epoch 1."""
        if epoch == self._config.rewind_to_epoch:
            self._snapshot = self.flat.scores.detach().clone()
        if epoch == 1 and self._config.drop_bottom_half_weights:
            self._score_by_magnitude()

    def project(self) -> None:
        """Clamp every score to [0, 1] and update the moving threshold."""
        super().project()
        self._follow_threshold()

    @torch.no_grad()
    def _follow_threshold(self) -> None:
        """Set a moving threshold to the score below which so many unpruned weights lie as are to be switched off."""
        if self._moves_threshold:
            weights = self.flat.segments[0]
            ranked = torch.where(self.flat.flags[weights], self.flat.scores[weights], torch.inf)
            lowest = kth_lowest(ranked, self._switched_off) if self._switched_off else ranked.new_full((), -1.0)
            # With `auto`, at most so many are switched off; the penalty may leave more than the target switched on.
            limit = self._config.quantize_threshold if self._auto else torch.inf
            self.rule.threshold.copy_(lowest.clamp(max=limit))

    def _flags_changed(self) -> None:
        """Recount how many unpruned weights the moving threshold switches off; reads from the device."""
        if self._moves_threshold:
            unpruned = int(self.flat.flags[self.flat.segments[0]].sum())
            self._switched_off = max(0, unpruned - self._target) if self._auto else ceil_count(self._rate, unpruned)
            self._follow_threshold()

    @torch.no_grad()
    def _score_by_magnitude(self) -> None:
        """Set the score of the network's ⌈n/2⌉ weights of smallest magnitude to 0, that of the others to 1."""
        magnitudes = torch.cat([layer.weight.abs().flatten() for layer in masked_layers(self.network).values()])
        smallest = magnitudes.argsort(stable=True)[: ceil_count(0.5, self.weights)]
        scores = self.flat.scores[self.flat.segments[0]]
        scores.fill_(1.0)
        scores[smallest] = 0.0

    # ---- prunings ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def after_epoch(self, epoch: int, draw: Draw) -> None:
        """Prune if this epoch has a pruning; end the search if no weight is switched on any more.

        The epoch's row is measured before this, so it pairs an accuracy with the density that it was measured at.
        """
        if self._auto:
            weights = self.flat.segments[0]
            above = self.flat.flags[weights] & (self.flat.scores[weights] > self._config.quantize_threshold)
            self.set_lambda(self._auto.steered(self.lmbda, epoch, float(above.float().mean())))
        self.pruned_now = epoch in self._prunings
        if self.pruned_now:
            self._prune(last=epoch == self._prunings[-1], generator=draw("prune"))
            warn_of_thin_layers(self.flat.split(self.flat.flags), f"after the pruning of epoch {epoch}", self._thin)
            if self._config.rewind_score and self._snapshot is not None:
                self.flat.scores.copy_(self._snapshot)
            self._flags_changed()
        # Unrounded scores may all be low for a while and still work; only rounding them at the end would leave nothing.
        self.over = not isinstance(self.rule, Soft) and self.has_died()

    def has_died(self) -> bool:
        """Whether no weight is switched on."""
        return not bool(self.naive_mask()[self.flat.segments[0]].any())

    def highest(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Masks that keep the `count` highest-ranked weights, pruned or not, and all biases.

        Args:
            count: from 0 to N; 0 keeps one weight.
            generator: on the CPU; breaks the ties.
        """
        masks, weights = torch.ones_like(self.flat.flags), self.flat.segments[0]
        pruned = self.weights - max(1, count)
        masks[weights] = prune_exactly(self._rank()[weights], masks[weights], pruned, generator)
        return self.flat.split(masks)

    def _rank(self) -> Tensor:
        """The ranks of all entries; a pruning removes the lowest first."""
        magnitude = self.flat.scores.detach().abs()
        return -magnitude if self._config.invert_sanity_check else magnitude

    def _prune(self, last: bool, generator: torch.Generator) -> None:
        """Clear flags in place by `prune_type`; weights and biases are ranked apart, each with its own count."""
        config, rate, flags, rank = self._config, self._rate, self.flat.flags, self._rank()
        if config.prune_type == "FixThresholding":
            # The ranks of an inverted search are −s: in it the scores above 0.5 go.
            flags &= rank > 0.5 if not config.invert_sanity_check else rank >= -0.5
        elif config.prune_type == "LocalBottomK":
            for unpruned, ranks in zip(self.flat.split(flags).values(), self.flat.split(rank).values()):
                count = ceil_count(rate, int(unpruned.sum()))
                kept = prune_exactly(ranks.flatten(), unpruned.flatten(), count, generator)
                unpruned.copy_(kept.view_as(unpruned))
        else:
            for segment in self.flat.segments:
                unpruned, ranks = flags[segment], rank[segment]
                if config.prune_type == "BottomK":
                    scheduled = int(unpruned.sum()) - ceil_count(rate, int(unpruned.sum()))
                    flags[segment] = prune_lowest(ranks, unpruned, rate)
                    self._tied += scheduled - int(flags[segment].sum()) if segment.start == 0 else 0  # weights only
                else:
                    count = exact_count(config, rate, int(unpruned.sum()), unpruned.numel(), last)
                    prune = self._prune_cut_off if self._effective and segment.start == 0 else prune_exactly
                    flags[segment] = prune(ranks, unpruned, count, generator)

    def _prune_cut_off(self, ranks: Tensor, unpruned: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Prune as `prune_exactly` does, but first what would be cut off, if others on a path can take its place.

        What is cut off when the lowest have gone ranks below all others, and the pruning begins anew, until nothing
        more is. Of all these prunings the one counts that leaves most effective weights.
        """
        weights, ranks, best, most = self.flat.segments[0], ranks.clone(), unpruned, -1
        for _ in range(MOST_TURNS):
            flags = self.flat.flags.clone()
            flags[weights] = kept = prune_exactly(ranks, unpruned, count, generator)
            reached = torch.cat([mask.flatten() for mask in self._effective(self.flat.split(flags)).values()])
            cut_off = kept & ~reached[weights]
            if (effective := int((kept & ~cut_off).sum())) > most:
                best, most = kept, effective
            cut_off &= ranks >= 0
            if not cut_off.any():
                break
            ranks[cut_off] = -1.0
        return best

    def density_reason(self) -> str | None:
        """Say why the ticket may miss the target density; None if there is no such reason."""
        reasons = [self._out_of_reach] if self._out_of_reach else []
        if self._config.prune_type == "FixThresholding" and self._prunings:
            reasons.append("FixThresholding removes every score up to 0.5, whatever the target")
        if self._config.prune_type == "BottomK" and self._prunings:
            tied = f", and all that tie with the last one go too: {self._tied:,} here, most at 0" if self._tied else ""
            reasons.append(f"each pruning of BottomK rounds its count up{tied}")
        if self._config.prune_type == "LocalBottomK" and self._prunings:
            reasons.append("each pruning of LocalBottomK rounds the count of every layer up")
        if self._config.override_prune_rate and self._prunings:
            reasons.append(f"prune_rate {self._config.prune_rate:g} was asked for, whatever the target")
        if self._config.algo == "hc":
            reasons.append("hc prunes nothing for good: the penalty alone switches off")
        elif not self._config.unflag_before_finetune:
            weights = self.flat.segments[0]
            off = int(self.flat.flags[weights].sum()) - int(self.naive_mask()[weights].sum())
            reasons += [f"{off:,} more were switched off by their scores without being pruned"] if off else []
        return "; ".join(reasons) or None

    # ---- what is logged and saved ------------------------------------------------------------------------------------

    def measure(self, data: Splits, draw: Draw) -> Row:
        """The accuracies of a search for scores, λ, and the rounding's threshold; None if it switches nothing off."""
        threshold = float(self.rule.threshold)
        own = {"lmbda": self.lmbda, "threshold": threshold if threshold >= 0 else None}
        return {**super().measure(data, draw), **own}

    def state(self) -> dict[str, Any]:
        """The state of a Training, the snapshot, λ, and the threshold, which lags behind scores between projections."""
        threshold = float(self.rule.threshold) if self._moves_threshold else None
        own = {"snapshot": self._snapshot, "threshold": threshold, "tied": self._tied, "thin": sorted(self._thin)}
        return {**super().state(), **own, **({"lmbda": self.lmbda} if self._auto else {})}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        super().load_state(state)
        snapshot, self._tied, self._thin = state["snapshot"], state["tied"], set(state["thin"])
        self._snapshot = None if snapshot is None else snapshot.to(self.flat.scores)
        if snapshot is not None and snapshot.shape != self.flat.scores.shape:
            raise ValueError("the snapshot is of other scores")
        self._flags_changed()
        if self._auto:
            self.set_lambda(state.get("lmbda", self.lmbda))
        if state["threshold"] is not None:
            self.rule.threshold.fill_(state["threshold"])
