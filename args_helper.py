"""Declares every option once: its type, default, bounds, meaning, and whether it affects the result.

Flags, the checks of YAML files, `--help` and the defaults all come from these declarations. A flag overrides the YAML
file, which overrides the default; one message reports all problems.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data import DATASETS, DEFINED_BY_PATH, OF_FOLDERS
from models import MODELS, TORCHVISION, WITHOUT_MASKS
from trainers.algorithms import ALGORITHMS, DENSE, FROM_FILE, Algorithm, facts_of
from utils.errors import UserError
from utils.files import safetensors_header
from utils.options.parser import Declarations, Given, read_flags, read_yaml, validated
from utils.options.types import (
    Float,
    Folders,
    Inside,
    Int,
    Ints,
    Options,
    Paths,
    Period,
    Time,
    one_of,
    option,
)
from utils.run.stopping import seconds_of
from utils.schedules import pruning_epochs, pruning_rate

OWN_FILE = {"<file>.py:<function>": r".+\.py:\w+"}
"""Description -> pattern of a user's own algorithm or network, which is allowed in place of a built-in name."""


LrPolicy = one_of("constant_lr", "cosine_lr", "multistep_lr", aliases={"None": "constant_lr"})
OptimizerName = one_of("sgd", "adam")
Regularization = one_of(
    "none", "L2", "L1", "L1_L2", "var_red_1", "var_red_2", "bin_entropy",
    aliases={False: "none", True: "none", "False": "none", "True": "none", "None": "none", "false": "none"},
)  # fmt: skip


# ---- the options ---------------------------------------------------------------------------------------------------


class RunOptions(Options):
    """Run: where it is kept, its seed, its device"""

    config: str | None = option(None, "YAML file with options", affects=False)
    name: Inside | None = option(None, "folder of the run's trials under results_dir", affects=False)
    subfolder: Inside | None = option(None, "folder above `name`; default: the config file's name", affects=False)
    run_idx: Inside | None = option(None, "one more folder under `name`, to tell repetitions apart", affects=False)
    results_dir: str = option("results", "where run folders are made", affects=False)
    log_dir: str = option("runs", "where TensorBoard events go, in folders like those of results_dir", affects=False)
    results_filename: Inside = option("acc_and_sparsity.csv", "name of the per-epoch table", affects=False)
    seed: Int = option(42, "every random stream derives from seed × trial_num (of seed 0: from 1 − trial_num)", ge=0)
    trial_num: Int = option(1, "number of the first trial", affects=False, ge=1)
    num_trial: Int = option(1, "trials to run one after another", affects=False, ge=1)
    fixed_init: bool = option(False, "draw weights and scores from seed_fixed_init, the same in every trial")
    seed_fixed_init: Int = option(24, "seed of weights and scores with fixed_init", ge=0)
    device: one_of("auto", "cpu", "cuda", "mps") = option(
        "auto", "where to compute; auto: cuda number `gpu` if there is one, else cpu", affects=False
    )
    gpu: Int = option(0, "number of the GPU", affects=False, ge=0)
    no_cuda: bool = option(False, "use the CPU", affects=False)
    precision: one_of("fp32", "tf32", "bf16") = option(
        "fp32",
        "of training and of the accuracies it records: single; single with TF32 products on a GPU; mixed with "
        "bfloat16. What is measured on files afterwards (evaluate, mode_connect, ...) is single",
        changeable=True,
    )
    mixed_precision: bool = option(False, "on a GPU the same as precision: bf16", affects=False)
    compile: one_of("auto", "on", "off", aliases={True: "on", False: "off"}) = option(
        "auto", "compile the network's passes; auto: where the run is long enough to pay for it", affects=False
    )
    threads: Int = option(0, "CPU threads of PyTorch; 0: as many as it chooses", affects=False, ge=0)
    workers: Int = option(4, "threads or processes that read images", affects=False, aliases=("num_workers",), ge=0)
    multiprocessing_distributed: bool = option(
        False, "several processes are meant to share the work; it is torchrun that starts them", affects=False
    )
    world_size: Int = option(-1, "how many processes; torchrun says it", affects=False, ge=-1)
    rank: Int = option(-1, "which of them this is; torchrun says it", affects=False, ge=-1)
    dist_backend: one_of("nccl", "gloo") = option(
        "nccl", "what several processes with GPUs talk by; those on a CPU talk by gloo", affects=False
    )
    print_freq: Int = option(10, "steps between refreshes of the progress bar", affects=False, aliases=("p",), ge=1)
    save_every: Int = option(
        -1, "keep a copy of the checkpoint every n epochs; below 1: never", affects=False, aliases=("ckpt_interval",)
    )
    checkpoint_at_prune: bool = option(False, "keep a copy of the checkpoint after every pruning", affects=False)
    ckpt_at_fixed_epochs: Ints = option((), "keep a copy of the search's checkpoint after these epochs", affects=False)
    save_model: bool = option(False, "write the trained network as model.safetensors (a state_dict)", affects=False)
    checkpoint_every: Period = option(
        "1", "store the state every n epochs (`5`), or when so much time has passed (`10m`), within epochs too",
        affects=False,
    )  # fmt: skip
    keep_checkpoints: Int = option(
        2, "how many of a stage's newest states are kept, to fall back to where one is damaged", affects=False, ge=1
    )
    max_time: Time | None = option(
        None, "stop, everything stored, before this time (`2h`, `90m`) is over; exit code 75", affects=False
    )
    deterministic: bool = option(
        False, "the same bits at every run on a GPU; an operation that cannot is an error", affects=False
    )
    export: bool = option(
        False, "export the trained network as a state_dict, torch.export and ONNX, running what is not finished",
        affects=False,
    )  # fmt: skip
    resume: str | None = option(None, "go on with the run in this folder", affects=False)
    resume_anyway: bool = option(
        False, "go on though options differ from those the run began with, where it can take them", affects=False
    )
    resumed_with: str | None = option(None, "what resume_anyway has changed of a run; written by the tool itself")
    start_epoch: Int = option(0, "first epoch of the search, to go on from a `pretrained` network", ge=0)
    print_config: bool = option(False, "print the options as YAML and end", affects=False)
    dry_run: bool = option(
        False, "print the plan and end: layers, prunings, and time and memory by ten timed steps", affects=False
    )
    list: one_of("algorithms", "models", "datasets", "configs") | None = option(
        None, "print what there is of these, a line each, and end", affects=False
    )


class DataOptions(Options):
    """Data"""

    dataset: one_of(*DATASETS, aliases={"FfcvImageNet": "ImageNet"}) = option("Digits", "data set")
    data: str = option("data/datasets/", "folder of the data", affects=False, aliases=("data_dir",))
    data_at_first: str | None = option(
        None, "where the images of an ImageFolder lay when the run began; written by the tool itself", affects=False
    )
    image_size: Int = option(
        0, "size of the squares that images in folders are brought to; 0: the data set's own", ge=0, le=1024
    )
    batch_size: Int = option(64, "images a training step; a single one that is left joins the batch before it", ge=1)
    accumulate: Int = option(
        1,
        "parts, of two images at least, that a batch goes through the network in, to fit the memory",
        ge=1,
        changeable=True,
    )
    use_full_data: bool = option(False, "train on all training images, holding none out for validation")


class ModelOptions(Options):
    """Model"""

    arch: one_of(
        *MODELS,
        also={
            f"<any of these>{WITHOUT_MASKS}": f"({'|'.join(MODELS)}){WITHOUT_MASKS}",
            f"{TORCHVISION}<name>": f"{TORCHVISION}[^:]+",
            **OWN_FILE,
        },
    ) = option(
        "resnet20",
        "network; with Normal appended, the same one without masks; Conv4Wide and Conv6Wide are the names under which "
        "Conv4 and Conv6 were published for use with width_mult",
    )
    weights: str | None = option(None, "torchvision networks: start from these weights of theirs, such as DEFAULT")
    width: Float = option(1.0, "factor of every hidden width", aliases=("width_mult",), gt=0)
    hidden_size: Int = option(500, "units of FC's hidden layers", ge=1)
    bias: bool = option(False, "give convolutions and linear layers a bias, masked apart from the weights")
    conv_type: one_of("SubnetConv", "DenseConv") = option("SubnetConv", "masked layers or plain ones")
    first_layer_dense: bool = option(False, "leave the first layer unmasked: neither pruned nor counted")
    last_layer_dense: bool = option(False, "the same for the last layer")
    first_layer_type: one_of("SubnetConv", "DenseConv", aliases={"None": "SubnetConv"}) = option(
        "SubnetConv", "kind of the first layer; DenseConv is first_layer_dense"
    )
    bn_type: one_of("NonAffineBatchNorm", "AffineBatchNorm", "LearnedBatchNorm") = option(
        "NonAffineBatchNorm", "batch norm without or with scale and shift (frozen in the search, then trained)"
    )
    init: one_of(
        "signed_constant", "unsigned_constant", "kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_constant",
        "standard",
    ) = option("kaiming_normal", "how weights are drawn")  # fmt: skip
    score_init: one_of("unif", "half", "bern", "bimodal", "skew", "all_one") = option("unif", "how scores are drawn")
    mode: one_of("fan_in", "fan_out") = option("fan_in", "fan that scales the weights")
    nonlinearity: one_of("relu", "leaky_relu", "tanh", "sigmoid", "selu", "linear") = option(
        "relu", "nonlinearity whose gain scales the weights"
    )
    scale_fan: bool = option(
        False, "multiply the fan by 1 − prune_rate (constants and kaiming_normal); not where prune_rate is −1"
    )
    freeze_weights: bool = option(True, "keep the weights as drawn while scores are learned")
    pretrained: str | None = option(None, "start from this state_dict or checkpoint")


class SearchOptions(Options):
    """Search"""

    algo: one_of(*ALGORITHMS, aliases={"wt": DENSE, "dense": DENSE}, also=OWN_FILE) = option(
        "hc_iter", "algorithm, or the function of a file of one's own"
    )
    epochs: Int = option(10, "epochs of the search", ge=1)
    optimizer: OptimizerName = option("sgd", "optimizer of the search")
    lr: Float = option(1e-3, "initial learning rate of the search", gt=0, changeable=True)
    lr_policy: LrPolicy = option("constant_lr", "learning rate over the epochs of the search")
    gamma: Float = option(0.1, "factor of each step of multistep_lr", gt=0, le=1, changeable=True)
    milestones: Ints | None = option(
        None, "epochs of those steps; default: the published ones for the length", changeable=True
    )
    momentum: Float = option(0.9, "momentum of SGD, in the search and after", ge=0, lt=1, changeable=True)
    nesterov: bool = option(False, "Nesterov's momentum")
    wd: Float = option(5e-4, "weight decay in the search (acts on scores too)", ge=0, changeable=True)
    no_bn_decay: bool = option(False, "no weight decay on batch-norm parameters")
    label_smoothing: Float = option(0.0, "label smoothing of the training loss", ge=0, lt=1, changeable=True)
    warmup_length: Int = option(0, "epochs of linear warm-up", ge=0)
    regularization: Regularization = option("none", "penalty on the scores")
    lmbda: Float = option(1e-3, "weight λ of the penalty", ge=0, changeable=True)
    alpha: Float = option(1.0, "exponent of s in var_red_1 (below 1 its slope at 0 is infinite)", ge=1)
    alpha_prime: Float = option(1.0, "exponent of 1 − s in var_red_1", ge=1)
    iter_period: Int = option(5, "epochs from one pruning to the next", ge=1)
    iter_start: Int = option(0, "no pruning up to this epoch", ge=0)
    prune_type: one_of("FixThresholding", "BottomK", "LocalBottomK", "ExactBottomK") = option(
        "FixThresholding",
        "what a pruning removes: scores up to 0.5; the lowest fraction of the network with all ties; the lowest of "
        "each layer; the lowest of the network, exactly counted",
    )
    prune_rate: Float = option(
        0.5, "fraction of each pruning (override_prune_rate); see scale_fan; −1: not used", ge=-1, le=1
    )
    override_prune_rate: bool = option(False, "use prune_rate instead of the rate that meets the target")
    target_sparsity: Float = option(0.5, "weights that remain at the end, in percent", gt=0, le=100)
    hc_quantized: bool = option(False, "round the scores in the forward pass of the search (Gem-Miner)")
    quantize_threshold: Float = option(0.5, "scores above it count as 1", ge=0, lt=1)
    bottom_k_on_forward: bool = option(False, "round at the score under which p of the unpruned weights lie, instead")
    differentiate_clamp: bool = option(False, "bring scores into [0, 1] before every forward pass")
    project_freq: Int = option(1, "steps from one projection of the scores to [0, 1] to the next", ge=1)
    round: one_of("naive", "prob", "naive_prob", "all_ones") = option("naive", "rounding of the evaluated mask")
    noise: bool = option(False, "add noise to the scores that are evaluated")
    noise_ratio: Float = option(0.0, "standard deviation of that noise", ge=0)
    num_test: Int = option(1, "draws of the evaluated mask that are averaged", ge=1)
    rewind_score: bool = option(False, "after each pruning, set the scores back")
    rewind_to_epoch: Int = option(-1, "to what they were at the start of this epoch; −1: do not", ge=-1)
    drop_bottom_half_weights: bool = option(False, "at epoch 1 score the smaller half of the weights 0, the larger 1")
    invert_sanity_check: bool = option(False, "prune the highest scores instead of the lowest (a check)")
    unflag_before_finetune: bool = option(False, "fine-tune also what only the penalty had switched off")
    cts_loss: one_of("kl", "loss", "ce") = option(
        "kl", "algo cts: what the masked network loses against the dense one: divergence, ratio of losses, or its loss"
    )
    rewind_epoch: Int = option(0, "algo cts: dense epochs of the fine-tuning before the search", ge=0)
    weight_training: bool = option(False, "the same as algo: training", affects=False)
    dense_training: bool = option(False, "the same as algo: training", affects=False)


class ImpOptions(Options):
    """Iterative magnitude pruning (algo imp): rounds of iter_period epochs"""

    imp_rounds: Int = option(-1, "rounds, of prune_rate (0.2 unless given) each; −1: as many as the target needs")
    imp_rewind_iter: Int | None = option(
        None, "optimizer step of round 0 to rewind to, 0: as drawn; default: 1000, or 5% of a shorter round", ge=0
    )
    imp_no_rewind: bool = option(False, "keep the weights between rounds, rewind the learning rate only")
    imp_rewind_model: str | None = option(None, "rewind to the weights in this file instead")
    lr_gamma: Float = option(0.1, "factor of each step of multistep_lr in a round", gt=0, le=1, changeable=True)
    imp_resume_folder: str | None = option(None, "run folder whose round imp_resume_round goes on from")
    imp_resume_round: Int = option(-1, "go on from this round of another run; −1: begin at the beginning", ge=-1)
    imp_resume_epoch: Int = option(-1, "from its checkpoint at the start of this epoch; −1: from its end", ge=-1)
    imp_resume_iter: Int = option(-1, "and at this step of the epoch", ge=-1)


class BaselineOptions(Options):
    """Baselines at initialisation"""

    smart_ratio: Float = option(
        -1.0, "algo smart_ratio: fraction of the weights pruned; −1: by target_sparsity", ge=-1, lt=1
    )
    random_subnet: bool = option(
        False, "the same as algo: random_subnet, which keeps each weight by chance prune_rate; with smart_ratio, as "
        "algo: smart_ratio", affects=False,
    )  # fmt: skip
    shuffle: bool = option(False, "algo random_subnet: permute the masks (chg_mask) or kept weights (chg_weight)")
    reinit: bool = option(False, "algo random_subnet: draw the weights (chg_weight) or masks (chg_mask) anew")
    chg_mask: bool = option(False, "shuffle or reinit is of the masks")
    chg_weight: bool = option(False, "shuffle or reinit is of the weights")
    sr_version: Int = option(1, "algo smart_ratio: which ratios; 2 is for resnet20 only", ge=1, le=2)
    score_batches: Int = option(1, "algo snip: training batches that weights are scored on", ge=1)
    score_parts: Int = option(1, "algos snip, grasp: parts that a scored batch is split into, to fit the memory", ge=1)


class FineTuneOptions(Options):
    """Fine-tuning and sanity checks"""

    skip_fine_tune: bool = option(False, "end with the search", changeable=True)
    fine_tune_epochs: Int | None = option(None, "epochs of fine-tuning; default: epochs", ge=1, changeable=True)
    fine_tune_optimizer: OptimizerName = option("sgd", "its optimizer")
    fine_tune_lr: Float = option(0.01, "its initial learning rate", gt=0, changeable=True)
    fine_tune_lr_policy: LrPolicy = option("constant_lr", "its learning rate over the epochs", changeable=True)
    fine_tune_wd: Float = option(1e-4, "its weight decay", ge=0, changeable=True)
    skip_sanity_checks: bool = option(False, "do not train the control networks of the sanity checks", affects=False)
    ticket: str | None = option(
        None, "train and check the ticket in this file (zeros of a state_dict are its mask); the network and the data "
        "set are the ticket's own unless given"
    )  # fmt: skip
    store_weights: bool = option(
        False, "write the weights into the ticket though they could be drawn again", affects=False
    )
    with_dense: bool = option(
        False, "train the dense network as well, where the results have none of this seed yet", affects=False
    )
    only_sanity: bool = option(False, "make the missing checks of finished runs, or check a `ticket`", affects=False)
    sanity_folder: str | None = option(None, "only_sanity: folder with the runs, at any depth", affects=False)


class AnalysisOptions(Options):
    """Analysis of trained networks; nothing is trained"""

    evaluate: bool = option(
        False, "print the accuracy of a `pretrained` network or a `ticket`", affects=False,
        aliases=("evaluate_only", "e"),
    )  # fmt: skip
    compare_rounding: bool = option(
        False, "compare `num_test` masks drawn from the scores in `pretrained` to the rounded one", affects=False
    )
    mode_connect: bool = option(
        False, "loss and accuracy along the line from `pretrained` to `pretrained2`", affects=False
    )
    pretrained2: str | None = option(None, "the network at the other end", affects=False)
    how_to_connect: one_of("prob", "linear", "round", aliases={"random": "prob", "score": "linear"}) = option(
        "prob", "mode_connect of scores: join masks drawn from them, the scores, or rounded masks", affects=False
    )
    interpolate: one_of("prob", "linear") = option(
        "prob", "mode_connect of scores: between, take each place from one end by chance, or weigh both", affects=False
    )
    compare_tickets: Paths = option((), "the masks that these tickets (two files or more) share", affects=False)
    sweep: str | None = option(None, "be a worker at all the runs of this YAML file, and compare them", affects=False)
    report: Folders | None = option(
        None, "make a page with figures and tables of the runs in these folders, at any depth", affects=False
    )
    report_dir: str | None = option(None, "report: where it goes; default: report/ in the first folder", affects=False)


GROUPS: tuple[type[Options], ...] = (
    RunOptions,
    DataOptions,
    ModelOptions,
    SearchOptions,
    ImpOptions,
    BaselineOptions,
    FineTuneOptions,
    AnalysisOptions,
)

TASK_OPTIONS = (
    "dataset", "data", "image_size", "use_full_data", "arch", "width", "hidden_size", "bias", "bn_type", "seed",
)  # fmt: skip
"""The options that a dense reference shares with a ticket."""

# Options that no longer do anything -> what to use instead.
RETIRED = {
    "weight_decay": "use wd and fine_tune_wd",
    "iter_ep": "use algo: global_ep_iter",
    "lr_adjust": "use lr_policy",
    "shift": "use noise",
    "num_round": "use imp_rounds",
    "hc_warmup": "use iter_start",
    "hc_period": "use iter_period",
    "plot_hc_convergence": "see the TensorBoard log",
    "trainer": "use algo",
    "save_plot_data": "the per-epoch table is always written",
    "log_interval": "use print_freq",
    "loss": "the loss is cross-entropy; see label_smoothing",
    "score_init_constant": "use score_init: half",
    "lam_finetune_loss": "fine-tuning follows the search",
    "num_step_finetune": "use fine_tune_epochs",
    "num_epochs": "use epochs",
    "transfer_learning": "use pretrained",
    "bias_lastlayer": "use bias, for all layers, or a network of torchvision's, whose last layer has one",
    "load_ckpt": "use pretrained or resume",
    "mode_connect_filename": "figures lie in the run's folder",
    **{
        f"transformer_{name}": "language models are not part of this tool"
        for name in ("emsize", "nhid", "nlayers", "clip", "bptt", "dropout", "nhead")
    },
    **dict.fromkeys(
        (
            "submask_size", "metric", "pruning_strategy", "how_to_prune", "start_from_nothing", "flips", "td", "temp",
            "max_iter",
        ),
        "greedy pruning is not part of this tool",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Either(Container[int]):
    """The union of two containers, tested without listing them, because a range may be very long."""

    one: Container[int]
    other: Container[int]

    def __contains__(self, number: object) -> bool:
        return number in self.one or number in self.other


class Config(*reversed(GROUPS)):
    """All options of a run. It is frozen: what changes during a run is state of the run, not configuration."""

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm's row of facts, which needs no import of the algorithm."""
        return facts_of(self.algo)

    @property
    def keeping(self) -> dict[str, Any]:
        """When checkpoints are stored and which are kept: the arguments of `utils.run.checkpoints.Keeping`."""
        seconds = seconds_of(self.checkpoint_every)
        return {
            "every_epochs": 1 if seconds else int(self.checkpoint_every),
            "every_seconds": seconds,
            "last": self.keep_checkpoints,
            "copies_every": self.save_every,
            "copies_at": {"search": self.kept_epochs},
        }

    @property
    def torch_device(self) -> str:
        """PyTorch's name of the device; `device: auto` has to be resolved before."""
        return f"cuda:{self.gpu}" if self.device == "cuda" else self.device

    @property
    def without_masks(self) -> bool:
        """Whether the network has no layer that can learn a mask."""
        named_so = self.arch.removesuffix(WITHOUT_MASKS) in MODELS and self.arch.endswith(WITHOUT_MASKS)
        return named_so or self.conv_type == "DenseConv"

    @property
    def first_is_dense(self) -> bool:
        """Whether the first layer stays dense."""
        return self.first_layer_dense or self.first_layer_type == "DenseConv"

    @property
    def density(self) -> float:
        """The target fraction of the prunable weights that remain, in (0, 1]."""
        return self.target_sparsity / 100.0

    @property
    def effective_seed(self) -> int:
        """The seed of the run's random streams, different for every trial."""
        # With seed 0 the product would be the same in every trial; negative numbers are products of no other seed.
        return self.seed * self.trial_num if self.seed else 1 - self.trial_num

    @property
    def init_seed(self) -> int:
        """The seed for drawing weights and scores."""
        return self.seed_fixed_init if self.fixed_init else self.effective_seed

    @property
    def tuning_epochs(self) -> int:
        """The number of epochs of fine-tuning."""
        return self.epochs if self.fine_tune_epochs is None else self.fine_tune_epochs

    @property
    def prunings(self) -> range:
        """The epochs (0-based) after whose evaluation a gradual search prunes."""
        return pruning_epochs(self.epochs, self.iter_period, self.iter_start)

    @property
    def pruning_rate(self) -> float:
        """The fraction of the unpruned weights that each pruning of a gradual search removes."""
        return self.prune_rate if self.override_prune_rate else pruning_rate(self.density, len(self.prunings))

    @property
    def prunings_ahead(self) -> range:
        """The epochs after which `hc_iter` prunes, from `start_epoch` on."""
        return pruning_epochs(self.epochs, self.iter_period, max(self.iter_start, self.start_epoch - 1))

    def rate_from(self, share: float) -> float:
        """Return the fraction of the unpruned weights that each pruning of `hc_iter` removes.

        Args:
            share: the fraction of all weights that is unpruned when the search begins, in [0, 1].
        """
        if self.override_prune_rate:
            return self.prune_rate
        ahead = len(self.prunings_ahead)
        return pruning_rate(self.density / max(share, self.density), ahead) if ahead else 0.0

    @property
    def imp_prunings(self) -> int:
        """The number of prunings in iterative magnitude pruning, one less than its rounds.

        Source: ⌈ln d / ln(1 − q)⌉ prunings, each of which keeps the fraction 1 − q, reach the density d.
        """
        if self.imp_rounds > 0:
            return self.imp_rounds - 1
        return math.ceil(math.log(self.density) / math.log(1.0 - self.prune_rate) - 1e-9)

    @property
    def kept_epochs(self) -> Container[int]:
        """The epochs of the search after which a permanent copy of its checkpoint is kept."""
        pruned = self.prunings if self.checkpoint_at_prune and self.algorithm.gradual else range(0)
        return _Either(self.ckpt_at_fixed_epochs, pruned)

    @property
    def task_hash(self) -> str:
        """A hash of what a dense reference shares with a ticket: the data, the network's shape, and the seed."""
        shared = {name: value for name, value in self.deciding().items() if name in TASK_OPTIONS}
        return _digest(shared)

    @property
    def config_hash(self) -> str:
        """A hash of the experiment: equal for configs that differ only in options that do not affect the result.

        It leaves out the trial, so the trials of one experiment share it.
        """
        # Without defaults, so that an option added by a later version does not change the hash of older experiments.
        defaults = json.loads(Config().model_dump_json())
        chosen = {name: value for name, value in self.deciding().items() if value != defaults[name]}
        return _digest(chosen)

    def deciding(self) -> dict[str, Any]:
        """Return the options that affect the result, by name."""
        names = {name for name, field in OPTIONS.items() if field.json_schema_extra["affects"]}
        decided = json.loads(self.model_dump_json(include=names))
        if self.dataset in DEFINED_BY_PATH:  # the run's first path: the data may have moved since
            decided["data"] = self.data_at_first or self.data
        for name in ("algo", "arch"):  # of a user's file the content counts, not only the name
            if (path := _own_file(decided[name])) is not None:
                decided[name] += f" {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
        return decided

    def of_network(self) -> dict[str, Any]:
        """Return what a ticket file stores about its network and data: `dataset`, `arch`, and non-default options."""
        told = {name: getattr(self, name) for name in OF_TICKETS}
        if not self.scale_fan:
            del told["prune_rate"]
        always = ("dataset", "arch")
        return {name: value for name, value in told.items() if name in always or value != OPTIONS[name].default}

    def to_yaml(self) -> str:
        """Write the options as YAML that is itself a valid config file."""
        given = json.loads(self.model_dump_json(exclude={*FLAGS_ONLY, "resume_anyway"}, exclude_none=True))
        return yaml.safe_dump(given, sort_keys=False, allow_unicode=True)


def _own_file(name: str) -> Path | None:
    """Return the existing user's file that an algorithm or a network comes from, or None."""
    path = Path(name.rpartition(":")[0])
    return path if path.suffix == ".py" and path.is_file() else None


def _digest(options: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]


FLAGS_ONLY = frozenset({"config", "resume", "print_config", "sweep"})
"""Options that a config file cannot hold, because they say what to do with one."""

OF_TICKETS = (
    "dataset", "image_size", "arch", "width", "hidden_size", "bias", "first_layer_dense", "last_layer_dense",
    "first_layer_type", "bn_type", "init", "mode", "nonlinearity", "scale_fan", "prune_rate",
)  # fmt: skip
"""Options that a ticket file stores: they apply if neither the config file nor a flag gives them."""

DECLARED = Declarations(GROUPS, RETIRED, FLAGS_ONLY)
OPTIONS = DECLARED.fields


SCALED_INITS = ("signed_constant", "unsigned_constant", "kaiming_normal")
"""The values of `init` to which `scale_fan` applies."""


def contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield contradictory combinations of options as (the options concerned, what is wrong)."""
    if config.scale_fan and config.init in SCALED_INITS and not 0 <= config.prune_rate < 1:
        yield (
            ("scale_fan", "prune_rate", "init"),
            f"scale_fan needs a prune_rate in [0, 1), or −1 to leave the fan as it is, not {config.prune_rate:g}",
        )
    if config.image_size and config.dataset not in OF_FOLDERS:
        yield (
            ("image_size", "dataset"),
            f"image_size is for images in folders ({', '.join(OF_FOLDERS)}): those of {config.dataset} have one size",
        )
    if config.warmup_length >= config.epochs:
        yield ("warmup_length", "epochs"), f"a warm-up of {config.warmup_length} epochs fills all {config.epochs}"
    if config.start_epoch >= config.epochs:
        yield ("start_epoch", "epochs"), f"start_epoch {config.start_epoch} lies beyond all {config.epochs} epochs"
    for of, momentum_user in (("optimizer", config.optimizer), ("fine_tune_optimizer", config.fine_tune_optimizer)):
        if config.nesterov and momentum_user == "sgd" and config.momentum == 0:
            yield ("nesterov", "momentum", of), "nesterov needs a momentum above 0"
            break
    yield from _network_contradictions(config)
    if config.algorithm.learns_mask and config.algo in ALGORITHMS:
        yield from _mask_contradictions(config)
    if config.algorithm.gradual:
        yield from _schedule_contradictions(config)
    if config.algorithm.search == "rounds":
        yield from _imp_contradictions(config)
    yield from _baseline_contradictions(config)
    yield from _mode_contradictions(config)


def _network_contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    if config.arch.startswith(TORCHVISION):
        for name in ("width", "bias", "bn_type", "hidden_size"):
            if getattr(config, name) != OPTIONS[name].default:
                yield (name, "arch"), f"{config.arch} comes as it is: {name} is for the tool's own networks"
    elif config.weights:
        yield ("weights", "arch"), f"weights are torchvision's, for networks such as {TORCHVISION}resnet18"
    if config.weights and config.pretrained:
        yield ("weights", "pretrained"), "weights and pretrained both say where to start from: give one of them"


def _mask_contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    if config.without_masks:
        name = "conv_type" if config.conv_type == "DenseConv" else "arch"
        yield (name, "algo"), f"algo {config.algo} learns masks, which {name} {getattr(config, name)} has not"
    if config.bottom_k_on_forward and not (config.algorithm.gradual and config.algorithm.bounded):
        yield ("bottom_k_on_forward", "algo"), "bottom_k_on_forward takes its fraction from the prunings of hc_iter"
    elif config.bottom_k_on_forward and not config.hc_quantized:
        yield ("bottom_k_on_forward", "hc_quantized"), "bottom_k_on_forward rounds as it goes: set hc_quantized"
    if config.bottom_k_on_forward and config.bias:
        yield ("bottom_k_on_forward", "bias"), "bottom_k_on_forward ranks weights only: it cannot be had with bias"
    by_rate = "prune_rate" in config.algorithm.density_options
    if by_rate and config.override_prune_rate and not 0 < config.prune_rate < 1:
        yield (
            ("prune_rate", "algo"),
            f"algo {config.algo} needs a prune_rate between 0 and 1, not {config.prune_rate:g}",
        )


def _imp_contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    if not 0 < config.prune_rate < 1:
        yield ("prune_rate", "algo"), f"algo imp needs a prune_rate between 0 and 1, not {config.prune_rate:g}"
    elif config.imp_resume_round > config.imp_prunings:
        yield (
            ("imp_resume_round", "imp_rounds", "target_sparsity"),
            f"imp_resume_round {config.imp_resume_round} lies beyond the last round, {config.imp_prunings}",
        )
    if config.imp_rounds == 0 or config.imp_rounds < -1:
        yield ("imp_rounds",), f"imp_rounds {config.imp_rounds} is neither −1 nor at least 1"
    if config.imp_resume_round >= 0 and not config.imp_resume_folder:
        yield (
            ("imp_resume_round", "imp_resume_folder"),
            "imp_resume_round needs --imp_resume_folder, the run folder that has the round (a run that was stopped "
            "goes on by --resume, and needs neither)",
        )
    if config.imp_resume_round < 0 and max(config.imp_resume_epoch, config.imp_resume_iter) >= 0:
        yield (
            ("imp_resume_epoch", "imp_resume_iter", "imp_resume_round"),
            "a place in a round was given but no round: imp_resume_round",
        )


def _baseline_contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    facts = config.algorithm
    if "prune_rate" in facts.density_options and not facts.learns_mask and not 0 < config.prune_rate <= 1:
        yield (
            ("prune_rate", "algo", "random_subnet"),
            f"random_subnet keeps each weight by chance prune_rate, which cannot be {config.prune_rate:g}",
        )
    if (config.chg_mask or config.chg_weight) and not (config.shuffle or config.reinit):
        yield ("chg_mask", "chg_weight"), "chg_mask and chg_weight say what shuffle or reinit is of: give one of these"
    if config.algo == FROM_FILE and not config.ticket:
        yield ("algo", "ticket"), "algo given is a ticket from a file: name the file by ticket"
    if facts.rewinds and config.rewind_epoch >= config.tuning_epochs:
        yield (
            ("rewind_epoch", "fine_tune_epochs", "epochs"),
            f"rewind_epoch {config.rewind_epoch} leaves none of the {config.tuning_epochs} epochs of fine-tuning",
        )
    if facts.rewinds and config.density == 1:
        yield ("algo", "target_sparsity"), f"algo {config.algo} needs a target_sparsity below 100"


def _mode_contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    if config.only_sanity and not (config.sanity_folder or config.ticket):
        yield ("only_sanity",), "only_sanity needs a sanity_folder with finished runs, or a ticket"
    if config.evaluate and not (config.pretrained or config.ticket):
        yield ("evaluate",), "evaluate needs a network: name its file by pretrained or ticket"
    if config.compare_rounding and not config.pretrained:
        yield ("compare_rounding",), "compare_rounding needs scores: name a search's checkpoint by pretrained"
    if len(config.compare_tickets) == 1:
        yield ("compare_tickets",), "compare_tickets needs two tickets or more"
    if config.mode_connect and not (config.pretrained and config.pretrained2):
        yield ("mode_connect",), "mode_connect needs two networks: name their files by pretrained and pretrained2"


def _schedule_contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    if not config.prunings:
        yield (
            ("epochs", "iter_period", "iter_start"),
            f"{config.algo} would never prune: of {config.epochs} epochs, none after iter_start {config.iter_start} is "
            f"a multiple of iter_period {config.iter_period} (lower iter_period, or train longer)",
        )
        return
    if not 0 < config.pruning_rate < 1 and config.density < 1:
        yield (
            ("override_prune_rate", "prune_rate", "target_sparsity"),
            f"{config.algo} would never prune, or prune everything: each pruning removes a fraction of "
            f"{config.pruning_rate:g}, which has to lie between 0 and 1",
        )
    if config.rewind_score and config.rewind_to_epoch > config.prunings[0]:
        yield (
            ("rewind_score", "rewind_to_epoch"),
            f"rewind_to_epoch {config.rewind_to_epoch} lies after the first pruning, at epoch {config.prunings[0]}",
        )
    if config.rewind_score and 0 <= config.rewind_to_epoch < config.start_epoch:
        yield (
            ("rewind_score", "rewind_to_epoch", "start_epoch"),
            f"rewind_to_epoch {config.rewind_to_epoch} lies before start_epoch {config.start_epoch}",
        )


# ---- a Config from files and flags ---------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> Config:
    """Read a config from a command line: flags override the YAML file, which overrides the defaults.

    With `--resume FOLDER`, `config.yml` in that folder is read, and no option that affects the result may differ from
    it, unless `--resume_anyway` is given.

    Args:
        argv: the arguments after the program's name; by default the process's own.

    Raises:
        UserError: any of the options is wrong; one message lists all problems.
        SystemExit: `--help` was given.
    """
    flags, problems = read_flags(DECLARED, argv)
    if "resume" in flags:
        return _resumed(flags, problems)
    source = flags.get("config")
    from_file = read_yaml(DECLARED, Path(str(source.value)), problems) if source else {}
    return _make_config({**from_file, **flags}, problems)


def config_of(options: Mapping[str, Any], source: str) -> Config:
    """Make a config from options that come neither from a config file nor from flags; check them in the same way.

    Args:
        options: name -> value, as a YAML file or a flag would give it.
        source: where the options come from, for messages.

    Raises:
        UserError: any of the options is wrong; one message lists all problems.
    """
    given: dict[str, Given] = {}
    problems: list[str] = []
    for name, value in options.items():
        DECLARED.take(given, name.replace("-", "_"), Given(value, f"{name} ({source})"), problems)
    return _make_config(given, problems)


def config_from(path: str | Path | None, options: Mapping[str, Any]) -> Config:
    """Make a config from a YAML file and the keyword arguments that override it; check them in the same way.

    Args:
        path: the file; None for the defaults.
        options: name -> value.

    Raises:
        UserError: any of the options is wrong; one message lists all problems.
    """
    problems: list[str] = []
    given = read_yaml(DECLARED, Path(path), problems) if path is not None else {}
    if path is not None:
        given["config"] = Given(str(path), "config")
    for name, value in options.items():
        DECLARED.take(given, name, Given(value, f"{name}="), problems)
    return _make_config(given, problems)


def _resumed(flags: dict[str, Given], problems: list[str]) -> Config:
    folder = Path(str(flags["resume"].value))
    stored = folder / "config.yml"
    if not stored.is_file():
        raise UserError(f"--resume {folder}: there is no config.yml in it, so it is not the folder of a run")
    begun = read_yaml(DECLARED, stored, problems)
    source = flags.pop("config", None)
    from_file = read_yaml(DECLARED, Path(str(source.value)), problems) if source else {}
    before = _make_config(begun, problems)
    after = _make_config({**begun, **from_file, **flags}, problems)
    if after.dataset in DEFINED_BY_PATH and after.data != before.data:
        first = before.data_at_first or before.data
        warnings.warn(f"--resume {folder}: the images in {after.data} have to be those of {first}", stacklevel=3)
        after = after.model_copy(update={"data_at_first": first})
    if before.config_hash == after.config_hash and before.trial_num == after.trial_num:
        return after
    return _changed(before, after, f"--resume {folder}")


def _changed(before: Config, after: Config, where: str) -> Config:
    """Return the config of a run that is resumed with changed options, if `resume_anyway` is given.

    Raises:
        UserError: it is not given, or a run cannot change one of these options.
    """
    told = difference(before, after)
    able = {name for name, field in OPTIONS.items() if field.json_schema_extra["changeable"]}
    unable = [name for name in differing(before, after) if name not in able]
    if unable or not after.resume_anyway:
        hint = "" if unable else "; --resume_anyway goes on with the new ones"
        unable_too = f"; a run that has begun cannot change {', '.join(unable)}" if after.resume_anyway else ""
        raise UserError(f"{where}: a run goes on as it began, but these options differ: {told}{unable_too}{hint}")
    warnings.warn(f"{where}: going on with {told}; the run is no longer that of its first options", stacklevel=2)
    note = "; ".join(filter(None, (before.resumed_with, told)))
    return after.model_copy(update={"resumed_with": note, "num_trial": 1})


def differing(before: Config, after: Config) -> dict[str, str]:
    """Return option -> "old → new" for options that differ and affect the result, and for `trial_num` if it differs."""
    old, new = ({**config.deciding(), "trial_num": config.trial_num} for config in (before, after))
    return {name: f"{old.get(name)} → {new.get(name)}" for name in OPTIONS if old.get(name) != new.get(name)}


def difference(before: Config, after: Config) -> str:
    """Describe the options that affect the result and differ, with both values."""
    return ", ".join(f"{name} {values}" for name, values in differing(before, after).items())


def _make_config(given: dict[str, Given], problems: list[str]) -> Config:
    """Validate all values together.

    Raises:
        UserError: there are problems, found before or now; the message lists all of them.
    """
    given = {**_of_ticket(given), **given}
    if "regularization" in given and given["regularization"].value in (True, "True", "true"):
        warnings.warn(f"{given['regularization'].where}: true names no penalty; none is used", stacklevel=3)
    problems = list(problems)
    config, wrong = validated(Config, given, problems)
    implied = _implied(config, given)
    if "scale_fan" in implied:
        where = f"{given['scale_fan'].where}, {given['prune_rate'].where}"
        warnings.warn(f"{where}: with a prune_rate of −1, not used, scale_fan leaves the fan as it is", stacklevel=3)
    config = config.model_copy(update=implied)
    for concerned, text in contradictions(config):
        if not wrong.intersection(concerned):
            where = [given[name].where for name in concerned if name in given]
            problems.append(f"{', '.join(where) or concerned[0]}: {text}")
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError("\n  ".join([f"{count} with the options:", *problems]))
    return config


def _of_ticket(given: Mapping[str, Given]) -> dict[str, Given]:
    """Return the options stored in the ticket file, if one is given and stores them.

    A ticket from someone else must not choose which code runs, so an `arch` from a `.py` file is ignored.
    """
    path = given["ticket"].value if "ticket" in given else None
    try:
        told = json.loads(safetensors_header(Path(path)).get("about", "{}"))["options"] if path else {}
        told = {name: told[name] for name in OF_TICKETS if name in told and ".py:" not in str(told[name])}
    except (ValueError, TypeError, KeyError, RecursionError):  # not a ticket, or an old one without options
        return {}
    if "dataset" in given:
        told.pop("image_size", None)  # it belongs to the ticket's data set
    return {name: Given(value, f"{name} (of the ticket {path})") for name, value in told.items()}


def _implied(config: Config, given: Mapping[str, Given]) -> dict[str, Any]:
    """Return the options implied by the given ones; stored explicitly, so that a copy of the config means the same."""
    implied: dict[str, Any] = {}
    if config.subfolder is None and config.config is not None and (stem := Path(config.config).stem).strip("."):
        implied["subfolder"] = stem  # not the stem of `...yml`, which is `..`
    if config.scale_fan and config.init in SCALED_INITS and config.prune_rate == -1:
        implied["scale_fan"] = False
    algo = _algorithm_meant(config)
    facts = facts_of(algo)
    if algo != config.algo:
        implied["algo"] = algo
    if (
        "prune_rate" in facts.density_options
        and facts.learns_mask
        and "prune_rate" in given
        and "target_sparsity" not in given
    ):
        implied["override_prune_rate"] = True
    for name, value in facts.defaults.items():
        # In old config files a prune_rate of 0 or −1 means "not used".
        if name not in given or (name == "prune_rate" and config.prune_rate <= 0):
            implied[name] = value
    return implied


def _algorithm_meant(config: Config) -> str:
    """Return the algorithm that `algo` names, or one of the switches in published config files."""
    if config.ticket and not config.evaluate:
        return FROM_FILE
    if config.weight_training or config.dense_training:
        return DENSE
    if config.random_subnet:
        return "random_subnet" if config.smart_ratio < 0 else "smart_ratio"
    return config.algo
