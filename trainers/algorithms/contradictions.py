"""What each kind of algorithm refuses: combinations of options, as rows for the table of algorithms.

`args_helper` evaluates the rows of the chosen algorithm once all options are known, and reports every row that holds
together with its other complaints. Each rule, or tuple of rules, is for one kind of algorithm; a row of the table joins
those that apply.
"""

from __future__ import annotations

from utils.options.contradictions import Contradiction

_NO_FRACTION = "algo {c.algo} needs a prune_rate between 0 and 1, not {c.prune_rate:g}"

BY_ANY = (
    Contradiction(
        ("lmbda", "algo"),
        lambda c: c.lmbda == "auto" and c.algorithm.learns_mask and not c.algorithm.auto_defaults,
        "lmbda auto is for hc_iter: give {c.algo} a number",
    ),
    Contradiction(
        ("invert_sanity_check", "algo"),
        lambda c: c.invert_sanity_check and not c.algorithm.inverts,
        "invert_sanity_check is for hc_iter: {c.algo} would find the same ticket again",
    ),
    Contradiction(
        ("teacher_weight", "teacher_temperature"),
        lambda c: (
            not c.teacher
            and "teacher" not in c.algorithm.ignores.options
            and any(
                getattr(c, name) != type(c).model_fields[name].default
                for name in ("teacher_weight", "teacher_temperature")
            )
        ),
        "there is no teacher: name the folder of its run by teacher",
    ),
)
"""Of every algorithm that does not say otherwise."""

LEARNS_MASK = (
    Contradiction(
        ("conv_type", "algo"),
        lambda c: c.conv_type == "DenseConv",
        "algo {c.algo} learns masks, which conv_type {c.conv_type} has not",
    ),
    Contradiction(
        ("arch", "algo"),
        lambda c: c.without_masks and c.conv_type != "DenseConv",
        "algo {c.algo} learns masks, which arch {c.arch} has not",
    ),
)
"""Of an algorithm that learns scores by gradient."""

NO_MOVING_THRESHOLD = Contradiction(
    ("bottom_k_on_forward", "algo"),
    lambda c: c.bottom_k_on_forward,
    "bottom_k_on_forward takes its fraction from the prunings of hc_iter",
)
"""Of an algorithm that learns scores and does not round them at a threshold that follows its prunings."""

MOVING_THRESHOLD = (
    Contradiction(
        ("bottom_k_on_forward", "hc_quantized"),
        lambda c: c.bottom_k_on_forward and not c.hc_quantized,
        "bottom_k_on_forward rounds as it goes: set hc_quantized",
    ),
    Contradiction(
        ("bottom_k_on_forward", "bias"),
        lambda c: c.bottom_k_on_forward and c.bias,
        "bottom_k_on_forward ranks weights only: it cannot be had with bias",
    ),
)
"""Of an algorithm that can round scores at a threshold that follows its prunings."""

ROUNDED = Contradiction(
    ("score_init", "hc_quantized", "quantize_threshold"),
    lambda c: c.hc_quantized and c.score_init == "half" and c.quantize_threshold >= 0.5 and not c.pretrained,
    "score_init half would begin with every weight switched off: no score of 0.5 is above quantize_threshold "
    "{c.quantize_threshold:g}",
)
"""Of an algorithm that can round its scores at a threshold."""

AUTO_LAMBDA = tuple(
    Contradiction(
        ("lmbda", name), lambda c, forbids=forbids: c.lmbda == "auto" and forbids(c), f"lmbda auto {complaint}"
    )
    for name, forbids, complaint in (
        ("regularization", lambda c: c.regularization != "L2", "is that of the penalty L2, not of {c.regularization}"),
        ("hc_quantized", lambda c: not c.hc_quantized, "needs rounded scores: set hc_quantized"),
        ("bottom_k_on_forward", lambda c: c.bottom_k_on_forward,
         "and bottom_k_on_forward both move the threshold: choose one"),
        ("invert_sanity_check", lambda c: c.invert_sanity_check,
         "keeps the highest scores switched on, which invert_sanity_check prunes: give a number"),
        ("prune_type", lambda c: c.prune_type == "FixThresholding",
         "holds the target, of which FixThresholding knows nothing: leave prune_type out"),
        ("override_prune_rate", lambda c: c.override_prune_rate,
         "holds the target, which override_prune_rate leaves aside: give a number, or a target_sparsity"),
    )
)  # fmt: skip
"""Of an algorithm that can steer λ by itself."""

FRACTION_IF_GIVEN = Contradiction(
    ("prune_rate", "algo"), lambda c: c.override_prune_rate and not 0 < c.prune_rate < 1, _NO_FRACTION
)
"""Of an algorithm that takes its density from `prune_rate` if the config gives one."""

UNBOUNDED = (
    Contradiction(
        ("round", "algo"),
        lambda c: c.round in ("prob", "naive_prob"),
        "round {c.round} takes scores as probabilities, which those of {c.algo} are not: leave it out",
    ),
    Contradiction(
        ("regularization", "algo"),
        lambda c: c.regularization in ("var_red_1", "var_red_2", "bin_entropy"),
        "regularization {c.regularization} is for scores in [0, 1], which those of {c.algo} are not: give L1 or L2",
    ),
)
"""Of an algorithm whose scores have no bounds."""

UNROUNDED = Contradiction(
    ("noise", "algo"),
    lambda c: c.noise,
    "noise is for masks that are rounded scores, and {c.algo} draws its masks: leave it out",
)
"""Of an algorithm that draws masks from its scores."""

_FROM_THE_START = Contradiction(
    ("start_epoch", "algo"), lambda c: c.start_epoch > 0, "{c.algo} begins at epoch 0: leave start_epoch out"
)

GRADUAL = (
    Contradiction(
        ("epochs", "iter_period", "iter_start"),
        lambda c: not c.prunings,
        "{c.algo} would never prune: the first pruning follows epoch {c.prunings.start} (counted from 0), and epochs "
        "is {c.epochs} (lower iter_period or iter_start, or train longer)",
    ),
    Contradiction(
        ("override_prune_rate", "prune_rate", "target_sparsity"),
        lambda c: c.prunings and not 0 < c.pruning_rate < 1 and c.density < 1,
        "{c.algo} would never prune, or prune everything: each pruning removes a fraction of {c.pruning_rate:g}, which "
        "has to lie between 0 and 1",
    ),
    Contradiction(
        ("rewind_score", "rewind_to_epoch"),
        lambda c: c.rewind_score and any(c.start_epoch <= epoch < c.rewind_to_epoch for epoch in c.prunings),
        "rewind_to_epoch {c.rewind_to_epoch} lies after the first pruning (see start_epoch, iter_start, iter_period)",
    ),
    Contradiction(
        ("rewind_score", "rewind_to_epoch", "start_epoch"),
        lambda c: c.prunings and c.rewind_score and 0 <= c.rewind_to_epoch < c.start_epoch,
        "rewind_to_epoch {c.rewind_to_epoch} lies before start_epoch {c.start_epoch}",
    ),
)
"""Of an algorithm that prunes during its search."""

REWINDS = (
    Contradiction(
        ("rewind_epoch", "fine_tune_epochs", "epochs"),
        lambda c: c.rewind_epoch >= c.tuning_epochs,
        "rewind_epoch {c.rewind_epoch} has to be below fine_tune_epochs, {c.tuning_epochs}",
    ),
    Contradiction(
        ("algo", "target_sparsity"), lambda c: c.density == 1, "algo {c.algo} needs a target_sparsity below 100"
    ),
    _FROM_THE_START,
)
"""Of an algorithm whose search may follow epochs of dense training; its logits start at log(d/(1 − d))."""

ROUNDS = (
    Contradiction(("prune_rate", "algo"), lambda c: not 0 < c.prune_rate < 1, _NO_FRACTION),
    Contradiction(
        ("imp_resume_round", "imp_rounds", "target_sparsity"),
        lambda c: 0 < c.prune_rate < 1 and c.imp_resume_round > c.imp_prunings,
        "imp_resume_round {c.imp_resume_round} lies beyond the last round, {c.imp_prunings}",
    ),
    Contradiction(
        ("imp_rounds",),
        lambda c: c.imp_rounds == 0 or c.imp_rounds < -1,
        "imp_rounds {c.imp_rounds} is neither −1 nor at least 1",
    ),
    Contradiction(
        ("imp_resume_round", "imp_resume_folder"),
        lambda c: c.imp_resume_round >= 0 and not c.imp_resume_folder,
        "imp_resume_round needs --imp_resume_folder, the run folder that has the round (a run that was stopped goes on "
        "by --resume, and needs neither)",
    ),
    Contradiction(
        ("imp_resume_epoch", "imp_resume_iter", "imp_resume_round"),
        lambda c: c.imp_resume_round < 0 and max(c.imp_resume_epoch, c.imp_resume_iter) >= 0,
        "a place in a round was given but no round: imp_resume_round",
    ),
    Contradiction(
        ("warmup_length", "iter_period"),
        lambda c: c.warmup_length >= c.iter_period,
        "warmup_length {c.warmup_length} has to be below iter_period, {c.iter_period}, the epochs of a round",
    ),
    _FROM_THE_START,
)
"""Of an algorithm that trains rounds of weights and prunes between them."""

BY_MAGNITUDE = Contradiction(
    ("prune_type", "algo"),
    lambda c: c.prune_type == "FixThresholding",
    "{c.algo} prunes by LocalBottomK (each layer), BottomK or ExactBottomK (both the whole network), not by "
    "{c.prune_type}",
)
"""Of an algorithm that prunes the smallest weights, layer by layer or in the whole network."""

OF_A_CLASSIFIER = Contradiction(
    ("last_layer_dense", "algo"),
    lambda c: c.last_layer_dense,
    "algo {c.algo} sets the density of the last layer, which last_layer_dense leaves unmasked: leave it out",
)
"""Of an algorithm that treats the last layer apart."""

BY_CHANCE = Contradiction(
    ("prune_rate", "algo", "random_subnet"),
    lambda c: not 0 < c.prune_rate <= 1,
    "random_subnet keeps each weight by chance prune_rate, which cannot be {c.prune_rate:g}",
)
"""Of an algorithm that keeps each weight with probability `prune_rate`."""

FROM_A_FILE = (
    Contradiction(
        ("algo", "ticket"), lambda c: not c.ticket, "algo given is a ticket from a file: name the file by ticket"
    ),
    Contradiction(
        ("ticket", "pretrained", "weights"),
        lambda c: c.pretrained or c.weights,
        "a ticket brings the weights that it begins with: leave pretrained and weights out",
    ),
)
