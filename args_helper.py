"""Declares every option once: its type, default, bounds, meaning, and whether it affects the result.

Flags, the checks of YAML files, `--help` and the defaults all come from these declarations.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import yaml

from data import DATASETS, DEFINED_BY_PATH, OF_FOLDERS
from models import MODELS, TORCHVISION, WITHOUT_MASKS
from trainers.algorithms import ALGORITHMS, ALSO_CALLED, DENSE, FROM_FILE, Algorithm, facts_of
from utils.errors import UserError
from utils.options.changes import accepted, stored_config
from utils.options.contradictions import Contradiction
from utils.options.modes import LOOKING, ONE_MODE, overridden
from utils.options.parser import Declarations, Given, read_flags, read_yaml, validated
from utils.options.retired import RETIRED
from utils.options.ticket_options import stored_options
from utils.options.types import Auto, Float, Folders, Inside, Int, Ints, Options, Paths, Period, Time, one_of, option
from utils.schedules import pruning_epochs, pruning_rate

OWN_FILE = {"<file>.py:<function>": r".+\.py:\w+"}
"""Description -> pattern of a user's own algorithm or network, which is allowed in place of a built-in name."""

Device = one_of("auto", "cpu", "cuda", "mps", meant={"gpu": "cuda"})
Precision = one_of("fp32", "tf32", "bf16")
Switch = one_of("auto", "on", "off", aliases={True: "on", False: "off"})
Listed = one_of("algorithms", "models", "datasets", "configs")
Network = one_of(
    *MODELS,
    also={
        f"<any of these>{WITHOUT_MASKS}": f"({'|'.join(MODELS)}){WITHOUT_MASKS}",
        f"{TORCHVISION}<name>": f"{TORCHVISION}[^:]+",
        **OWN_FILE,
    },
)
LayerKind = one_of("SubnetConv", "DenseConv", aliases={"None": "SubnetConv"})
BatchNorm = one_of("NonAffineBatchNorm", "AffineBatchNorm", "LearnedBatchNorm")
Init = one_of(
    "signed_constant", "unsigned_constant", "kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_constant",
    "standard", meant={"he": "kaiming_normal"},
)  # fmt: skip
Nonlinearity = one_of("relu", "leaky_relu", "tanh", "sigmoid", "selu", "linear")
AlgorithmName = one_of(*ALGORITHMS, aliases={"wt": DENSE, "dense": DENSE}, also=OWN_FILE, meant=ALSO_CALLED)
OptimizerName = one_of("sgd", "adam")
LrPolicy = one_of("constant_lr", "cosine_lr", "multistep_lr", aliases={"None": "constant_lr"})
Regularization = one_of(
    "none", "L2", "L1", "L1_L2", "var_red_1", "var_red_2", "bin_entropy",
    aliases={False: "none", True: "none", **dict.fromkeys(("False", "True", "None", "false", "true"), "none")},
)  # fmt: skip
PruneType = one_of("FixThresholding", "BottomK", "LocalBottomK", "ExactBottomK")
CtsLoss = one_of("kl", "loss", "ce")
Joined = one_of("prob", "linear", "round", aliases={"random": "prob", "score": "linear"})


# ---- the options ---------------------------------------------------------------------------------------------------


class RunOptions(Options):
    """Run (where it is kept, its seed, its device)"""

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
    device: Device = option("auto", "where to compute; auto: cuda number `gpu` if there, else cpu", affects=False)
    gpu: Int = option(0, "number of the GPU", affects=False, ge=0)
    no_cuda: bool = option(False, "use the CPU", affects=False)
    precision: Precision = option("fp32", "single, with TF32 products, or mixed with bfloat16", changeable=True)
    mixed_precision: bool = option(False, "on a GPU the same as precision: bf16", affects=False)
    compile: Switch = option("auto", "compile the network; auto: where the run is long enough to gain", affects=False)
    threads: Int = option(0, "CPU threads of PyTorch; 0: as many as it chooses", affects=False, ge=0)
    workers: Int = option(4, "threads that read images", affects=False, aliases=("num_workers",), ge=0)
    multiprocessing_distributed: bool = option(False, "several processes share the work, by torchrun", affects=False)
    world_size: Int = option(-1, "number of processes; torchrun sets it", affects=False, ge=-1)
    rank: Int = option(-1, "number of this process; torchrun sets it", affects=False, ge=-1)
    dist_backend: one_of("nccl", "gloo") = option("nccl", "between GPUs; on a CPU it is gloo", affects=False)
    print_freq: Int = option(10, "steps between refreshes of the progress bar", affects=False, aliases=("p",), ge=1)
    save_every: Int = option(-1, "epochs between copies of the checkpoint", affects=False, aliases=("ckpt_interval",))
    checkpoint_at_prune: bool = option(False, "keep a copy of the checkpoint after every pruning", affects=False)
    ckpt_at_fixed_epochs: Ints = option((), "keep a copy of the search's checkpoint after these epochs", affects=False)
    save_model: bool = option(False, "write the trained network as model.safetensors (a state_dict)", affects=False)
    checkpoint_every: Period = option("1", "store the state every n epochs (`5`) or by time (`10m`)", affects=False)
    keep_checkpoints: Int = option(2, "newest states kept of a stage, in case one is damaged", affects=False, ge=1)
    max_time: Time | None = option(None, "stop, with all stored, before this time (`2h`, `90m`) ends", affects=False)
    deterministic: bool = option(False, "the same bits at every run on a GPU, or an error", affects=False)
    export: bool = option(False, "finish the run, and export it as state_dict, torch.export and ONNX", affects=False)
    resume: str | None = option(None, "go on with the run in this folder", affects=False)
    resume_anyway: bool = option(False, "resume with other options, where the run can take them", affects=False)
    resumed_with: str | None = option(None, "what resume_anyway changed in a run; the tool writes it: do not set it")
    start_epoch: Int = option(0, "first epoch of the search, to go on from a `pretrained` network", ge=0)
    print_config: bool = option(False, "print the options as YAML and end", affects=False)
    dry_run: bool = option(False, "print the plan of a run, with its time, or of a sweep, and end", affects=False)
    list: Listed | None = option(None, "print all of these, a line each, and end", affects=False)


class DataOptions(Options):
    """Data"""

    dataset: one_of(*DATASETS, aliases={"FfcvImageNet": "ImageNet"}) = option("Digits", "data set")
    data: str = option("data/datasets/", "folder of the data", affects=False, aliases=("data_dir",))
    data_at_first: str | None = option(None, "`data` at the start; the tool writes it: do not set it", affects=False)
    image_size: Int = option(0, "side of square images made from a folder's; 0: the data set's own", ge=0, le=1024)
    decode_on: one_of("cpu", "cuda") = option("cpu", "where JPEGs read batch by batch are decoded", changeable=True)
    batch_size: Int = option(64, "images a training step; a single one that is left joins the batch before it", ge=1)
    accumulate: Int = option(1, "parts (two images or more) of a batch, to fit the memory", ge=1, changeable=True)
    use_full_data: bool = option(False, "train on all training images, holding none out for validation")


class ModelOptions(Options):
    """Model"""

    arch: Network = option("resnet20", "network; with Normal appended, the same one without masks")
    weights: str | None = option(None, "torchvision networks: start from these weights of theirs, such as DEFAULT")
    width: Float = option(1.0, "factor of every hidden width", aliases=("width_mult",), gt=0)
    hidden_size: Int = option(500, "units of FC's hidden layers", ge=1)
    bias: bool = option(False, "give convolutions and linear layers a bias, masked apart from the weights")
    conv_type: one_of("SubnetConv", "DenseConv") = option("SubnetConv", "masked layers or plain ones")
    first_layer_dense: bool = option(False, "leave the first layer unmasked: neither pruned nor counted")
    last_layer_dense: bool = option(False, "the same for the last layer")
    first_layer_type: LayerKind = option("SubnetConv", "kind of the first layer; DenseConv is first_layer_dense")
    bn_type: BatchNorm = option("NonAffineBatchNorm", "Affine = Learned: scale and shift, trained in fine-tuning only")
    init: Init = option("kaiming_normal", "how weights are drawn")
    score_init: one_of("unif", "half", "bern", "bimodal", "skew", "all_one") = option("unif", "how scores are drawn")
    mode: one_of("fan_in", "fan_out") = option("fan_in", "fan that scales the weights")
    nonlinearity: Nonlinearity = option("relu", "nonlinearity whose gain scales the weights")
    scale_fan: bool = option(False, "multiply the fan by 1 − prune_rate (constants, kaiming_normal; −1: do not)")
    freeze_weights: bool = option(True, "keep the weights as drawn while scores are learned")
    pretrained: str | None = option(None, "start from this state_dict or checkpoint")


class SearchOptions(Options):
    """Search"""

    algo: AlgorithmName = option("hc_iter", "algorithm, or the function of a file of one's own")
    epochs: Int = option(10, "epochs of the search", ge=1)
    optimizer: OptimizerName = option("sgd", "optimizer of the search")
    lr: Float = option(1e-3, "initial learning rate of the search", gt=0, changeable=True)
    lr_policy: LrPolicy = option("constant_lr", "learning rate over the epochs of the search")
    gamma: Float = option(0.1, "factor of each step of multistep_lr", gt=0, le=1, changeable=True)
    milestones: Ints | None = option(None, "epochs of those steps; default: the published ones", changeable=True)
    momentum: Float = option(0.9, "momentum of SGD, in the search and after", ge=0, lt=1, changeable=True)
    nesterov: bool = option(False, "Nesterov's momentum")
    wd: Float = option(5e-4, "weight decay in the search (acts on scores too)", ge=0, changeable=True)
    no_bn_decay: bool = option(False, "no weight decay on batch-norm parameters")
    label_smoothing: Float = option(0.0, "label smoothing of the training loss", ge=0, lt=1, changeable=True)
    warmup_length: Int = option(0, "epochs of linear warm-up of the search", ge=0)
    regularization: Regularization = option("none", "penalty on the scores")
    lmbda: Auto = option(1e-3, "weight λ of the penalty; auto: the search steers it", changeable=True)
    alpha: Float = option(1.0, "exponent of s in var_red_1 (below 1 its slope at 0 is infinite)", ge=1)
    alpha_prime: Float = option(1.0, "exponent of 1 − s in var_red_1", ge=1)
    iter_period: Int = option(5, "epochs from one pruning to the next", ge=1)
    iter_start: Int = option(0, "no pruning up to this epoch", ge=0)
    prune_type: PruneType = option(
        "FixThresholding", "Fix: scores up to 0.5; BottomK: the lowest and ties; Local: by layer; Exact: exact number"
    )
    prune_rate: Float = option(0.5, "fraction of each pruning (override_prune_rate); −1: not used", ge=-1, le=1)
    override_prune_rate: bool = option(False, "use prune_rate instead of the rate that meets the target")
    target_sparsity: Float = option(0.5, "weights that remain at the end, in percent", gt=0, le=100)
    hc_quantized: bool = option(False, "round the scores in the forward pass of the search (Gem-Miner)")
    quantize_threshold: Float = option(0.5, "scores above it count as 1", ge=0, lt=1)
    bottom_k_on_forward: bool = option(False, "threshold the forward pass at the score of the next pruning")
    differentiate_clamp: bool = option(False, "bring scores into [0, 1] before every forward pass")
    project_freq: Int = option(1, "steps from one projection of the scores to [0, 1] to the next", ge=1)
    round: one_of("naive", "prob", "naive_prob", "all_ones") = option("naive", "rounding of the evaluated mask")
    noise: bool = option(False, "add noise to the scores that are evaluated")
    noise_ratio: Float = option(0.0, "standard deviation of that noise", ge=0)
    num_test: Int = option(1, "draws of the evaluated mask that are averaged", ge=1)
    rewind_score: bool = option(False, "after each pruning, reset the scores to those of rewind_to_epoch")
    rewind_to_epoch: Int = option(-1, "epoch at whose start rewind_score copies the scores; −1: no reset", ge=-1)
    drop_bottom_half_weights: bool = option(False, "at epoch 1 score the smaller half of the weights 0, the larger 1")
    invert_sanity_check: bool = option(False, "prune the highest scores instead of the lowest (a check)")
    unflag_before_finetune: bool = option(False, "fine-tune also what only the penalty had switched off")
    renew_batchnorm: bool = option(False, "estimate BatchNorm's statistics anew for the mask that was found")
    cts_loss: CtsLoss = option("kl", "algo cts: divergence from the dense network, ratio of losses, or own loss")
    rewind_epoch: Int = option(0, "algo cts: epochs of dense training before the search, the fine-tuning's first", ge=0)
    weight_training: bool = option(False, "the same as algo: training", affects=False)
    dense_training: bool = option(False, "the same as algo: training", affects=False)


class ImpOptions(Options):
    """Iterative magnitude pruning (algo imp), in rounds of iter_period epochs"""

    imp_rounds: Int = option(-1, "rounds, of prune_rate (0.2 unless given) each; −1: as many as the target needs")
    imp_rewind_iter: Int | None = option(None, "step of round 0 to rewind to; default: 1000 or 5% of it", ge=0)
    imp_no_rewind: bool = option(False, "keep the weights between rounds, rewind the learning rate only")
    imp_rewind_model: str | None = option(None, "rewind to the weights in this file instead")
    lr_gamma: Float = option(0.1, "factor of each step of multistep_lr in a round", gt=0, le=1, changeable=True)
    imp_resume_folder: str | None = option(None, "run folder whose round imp_resume_round goes on from")
    imp_resume_round: Int = option(-1, "go on from this round of another run; −1: begin at the beginning", ge=-1)
    imp_resume_epoch: Int = option(-1, "from its checkpoint at the start of this epoch; −1: from its end", ge=-1)
    imp_resume_iter: Int = option(-1, "and at this step of the epoch", ge=-1)


class SparseTrainingOptions(Options):
    """Sparse training (algos rigl, set, gmp, acdc): it takes epochs, optimizer, lr, lr_policy and wd"""

    update_every: Int = option(100, "algos rigl, set, gmp: steps from one change of the masks to the next", ge=1)
    update_until: Float = option(0.75, "algos rigl, set, gmp: fraction of the training that changes masks", gt=0, le=1)
    drop_fraction: Float = option(0.3, "algos rigl, set: fraction of a layer that is replaced, at first", ge=0, le=1)
    acdc_phase: Float = option(0.05, "algo acdc: length of a phase, as a fraction of the training", gt=0, le=0.5)


class BaselineOptions(Options):
    """Baselines at initialisation"""

    smart_ratio: Float = option(-1.0, "algo smart_ratio: fraction pruned; −1: by target_sparsity", ge=-1, lt=1)
    random_subnet: bool = option(False, "as algo: random_subnet; with smart_ratio, as algo: smart_ratio", affects=False)
    shuffle: bool = option(False, "algo random_subnet: permute the masks (chg_mask) or kept weights (chg_weight)")
    reinit: bool = option(False, "algo random_subnet: draw the weights (chg_weight) or masks (chg_mask) anew")
    chg_mask: bool = option(False, "apply shuffle or reinit to the masks")
    chg_weight: bool = option(False, "apply shuffle or reinit to the weights")
    sr_version: Int = option(1, "algo smart_ratio: which ratios; 2 is for resnet20 only", ge=1, le=2)
    score_batches: Int = option(1, "algo snip: training batches that weights are scored on", ge=1)
    score_parts: Int = option(1, "algos snip, grasp: parts that a scored batch is split into, to fit the memory", ge=1)


class FineTuneOptions(Options):
    """Fine-tuning and sanity checks"""

    skip_fine_tune: bool = option(False, "end with the search", changeable=True)
    fine_tune_epochs: Int | None = option(None, "epochs of fine-tuning; default: epochs", ge=1, changeable=True)
    fine_tune_optimizer: OptimizerName = option("sgd", "optimizer of the fine-tuning")
    fine_tune_lr: Float = option(0.01, "initial learning rate of the fine-tuning", gt=0, changeable=True)
    fine_tune_lr_policy: LrPolicy = option("constant_lr", "learning rate over the fine-tuning", changeable=True)
    fine_tune_wd: Float = option(1e-4, "weight decay of the fine-tuning", ge=0, changeable=True)
    fine_tune_augment: bool = option(True, "crop and flip images in the fine-tuning, where the data set does")
    teacher: str | None = option(None, "folder of a finished run whose predictions the fine-tuning learns too")
    teacher_weight: Float = option(0.7, "weight of the distance to the teacher in the loss", ge=0, le=1)
    teacher_temperature: Float = option(3.0, "divides the logits of both in that distance", gt=0)
    skip_sanity_checks: bool = option(False, "do not train the control networks of the sanity checks", affects=False)
    ticket: str | None = option(None, "train and check this ticket, on its own network and data set unless given")
    store_weights: bool = option(False, "write weights into the ticket that could be drawn again", affects=False)
    with_dense: bool = option(False, "also train the dense network, unless its results are there", affects=False)
    only_sanity: bool = option(False, "make the missing checks of finished runs, or check a `ticket`", affects=False)
    sanity_folder: str | None = option(None, "only_sanity: folder with the runs, at any depth", affects=False)


class AnalysisOptions(Options):
    """Analysis of trained networks; nothing is trained"""

    evaluate: bool = option(False, "print the accuracy of a network", affects=False, aliases=("evaluate_only", "e"))
    compare_rounding: bool = option(False, "compare `num_test` masks drawn from scores to the rounded", affects=False)
    mode_connect: bool = option(False, "accuracy along the line from `pretrained` to `pretrained2`", affects=False)
    pretrained2: str | None = option(None, "the network at the other end", affects=False)
    how_to_connect: Joined = option("prob", "mode_connect: between drawn masks, scores or rounded masks", affects=False)
    interpolate: one_of("prob", "linear") = option("prob", "mode_connect: swap entries or average them", affects=False)
    compare_tickets: Paths = option((), "the masks that these tickets (two files or more) share", affects=False)
    sweep: str | None = option(None, "run all experiments of this sweep file, and compare them", affects=False)
    report: Folders | None = option(None, "make a page on the runs in these folders, at any depth", affects=False)
    report_dir: str | None = option(None, "report: where it goes; default: report/ in the first folder", affects=False)
    pack: str | None = option(None, "write this folder's images into a few large files, to load faster", affects=False)
    pack_to: str | None = option(None, "pack: where they go; default: a folder beside that one", affects=False)
    pack_raw: bool = option(False, "pack: store pixels instead of JPEGs; larger, and faster still", affects=False)
    skip_broken: bool = option(False, "pack: leave out images that cannot be read", affects=False)
    check_data: str | None = option(None, "read every image of this folder, and name broken ones", affects=False)


GROUPS = (RunOptions, DataOptions, ModelOptions, SearchOptions, ImpOptions, SparseTrainingOptions, BaselineOptions,
          FineTuneOptions, AnalysisOptions)  # fmt: skip

TASK_OPTIONS = tuple("dataset data image_size use_full_data arch width hidden_size bias bn_type seed".split())
"""The options that a dense reference shares with a ticket."""


class Config(*reversed(GROUPS)):
    """All options of a run. It is frozen: what changes during a run is state of the run, not configuration."""

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm's row of facts, which needs no import of the algorithm."""
        return facts_of(self.algo)

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
    def has_target(self) -> bool:
        """Whether the ticket is to have the density `target_sparsity`, and not one that another option sets."""
        facts = self.algorithm
        given = {"prune_rate": self.override_prune_rate, "imp_rounds": self.imp_rounds > 0}
        given["smart_ratio"] = self.smart_ratio >= 0
        return facts.aims and not any(given[name] for name in facts.density_options + ("prune_rate",) * facts.gradual)

    @property
    def trials(self) -> range:
        """The numbers of the trials."""
        return range(self.trial_num, self.trial_num + self.num_trial)

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
    def imp_prunings(self) -> int:
        """The number of prunings in iterative magnitude pruning, one less than its rounds.

        Source: ⌈ln d / ln(1 − q)⌉ prunings, each of which keeps the fraction 1 − q, reach the density d.
        """
        if self.imp_rounds > 0:
            return self.imp_rounds - 1
        return math.ceil(math.log(self.density) / math.log(1.0 - self.prune_rate) - 1e-9)

    @property
    def kept_epochs(self) -> tuple[Container[int], ...]:
        """The epochs of the search after which a permanent copy of its checkpoint is kept."""
        pruned = self.prunings if self.checkpoint_at_prune and self.algorithm.gradual else range(0)
        return self.ckpt_at_fixed_epochs, pruned  # apart: a range may be too long to list

    @property
    def task_hash(self) -> str:
        """A hash of what a dense reference shares with a ticket: the data, the network's shape, and the seed."""
        return _digest({name: value for name, value in self.deciding().items() if name in TASK_OPTIONS})

    @property
    def config_hash(self) -> str:
        """A hash of the experiment: equal for configs that differ only in options that do not affect the result.

        It leaves out the trial, so the trials of one experiment share it.
        """
        # Without defaults, so that an option added by a later version does not change the hash of older experiments.
        defaults = json.loads(Config().model_dump_json())
        return _digest({name: value for name, value in self.deciding().items() if value != defaults[name]})

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

    @property
    def identity(self) -> dict[str, Any]:
        """The options that affect the result, and the trial: what makes a run this run."""
        return {"trial_num": self.trial_num, **self.deciding()}

    def of_network(self) -> dict[str, Any]:
        """Return what a ticket file stores about its network and data: `dataset`, `arch`, and non-default options."""
        told = {name: getattr(self, name) for name in OF_TICKETS if name != "prune_rate" or self.scale_fan}
        always = ("dataset", "arch")
        return {name: value for name, value in told.items() if name in always or value != OPTIONS[name].default}

    def to_yaml(self) -> str:
        """Write the options, without those of one process alone, as YAML that is itself a valid config file."""
        given = json.loads(self.model_dump_json(exclude={*FLAGS_ONLY, "max_time", "resume_anyway"}, exclude_none=True))
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

SCALED_INITS = ("signed_constant", "unsigned_constant", "kaiming_normal")  # those to which `scale_fan` applies

CONTRADICTIONS = (
    ONE_MODE,
    Contradiction(("scale_fan", "prune_rate", "init"),
                  lambda c: c.scale_fan and c.init in SCALED_INITS and not 0 <= c.prune_rate < 1,
                  "scale_fan needs a prune_rate in [0, 1), or −1 to leave the fan as it is, not {c.prune_rate:g}"),
    Contradiction(("image_size", "dataset"), lambda c: c.image_size and c.dataset not in OF_FOLDERS and not c.pack,
                  f"image_size is for images in folders ({', '.join(OF_FOLDERS)}): those of "
                  "{c.dataset} have one size"),
    Contradiction(("results_filename",),
                  lambda c: c.results_filename.endswith((".yml", ".json", ".safetensors", ".pt", ".png")),
                  "results_filename {c.results_filename} may be that of another file of the run: let it end in .csv"),
    Contradiction(("no_cuda", "device"), lambda c: c.no_cuda and c.device not in ("auto", "cpu"),
                  "no_cuda is to use the CPU, and device {c.device} is not the CPU"),
    Contradiction(("warmup_length", "epochs"), lambda c: c.algorithm.search != "rounds" and c.warmup_length >= c.epochs,
                  "warmup_length {c.warmup_length} has to be below epochs, {c.epochs}"),
    Contradiction(("start_epoch", "epochs"), lambda c: c.start_epoch >= c.epochs,
                  "start_epoch {c.start_epoch} has to be below epochs, {c.epochs}"),
    Contradiction(("nesterov", "momentum", "optimizer", "fine_tune_optimizer"),
                  lambda c: c.nesterov and c.momentum == 0 and "sgd" in (c.optimizer, c.fine_tune_optimizer),
                  "nesterov needs a momentum above 0"),
    *(
        Contradiction(
            (name, "arch"),
            lambda c, name=name: c.arch.startswith(TORCHVISION) and getattr(c, name) != OPTIONS[name].default,
            f"{{c.arch}} comes as it is: {name} is for the tool's own networks",
        )
        for name in ("width", "bias", "bn_type", "hidden_size")
    ),
    Contradiction(("weights", "arch"), lambda c: c.weights and not c.arch.startswith(TORCHVISION),
                  f"weights are torchvision's, for networks such as {TORCHVISION}resnet18"),
    Contradiction(("weights", "pretrained"),
                  lambda c: c.weights and c.pretrained and not any(getattr(c, mode) for mode in LOOKING),
                  "weights and pretrained both say where to start from: give one of them"),
    Contradiction(("chg_mask", "chg_weight"), lambda c: (c.chg_mask or c.chg_weight) and not (c.shuffle or c.reinit),
                  "chg_mask and chg_weight say what shuffle or reinit is of: give one of these"),
    Contradiction(("only_sanity",), lambda c: c.only_sanity and bool(c.sanity_folder) == bool(c.ticket),
                  "only_sanity needs a sanity_folder with finished runs or a ticket: give one of them"),
    Contradiction(("evaluate",), lambda c: c.evaluate and not (c.pretrained or c.ticket),
                  "evaluate needs a network: name its file by pretrained or ticket"),
    Contradiction(("compare_rounding",), lambda c: c.compare_rounding and not c.pretrained,
                  "compare_rounding needs scores: name a search's checkpoint by pretrained"),
    Contradiction(("compare_tickets",), lambda c: len(c.compare_tickets) == 1, "compare_tickets needs two or more"),
    Contradiction(("pack_to", "pack_raw", "skip_broken"),
                  lambda c: (c.pack_to or c.pack_raw or c.skip_broken) and not c.pack,
                  "pack_to, pack_raw and skip_broken say how to pack: name the folder by pack"),
    Contradiction(("mode_connect",), lambda c: c.mode_connect and not (c.pretrained and c.pretrained2),
                  "mode_connect needs two networks: name their files by pretrained and pretrained2"),
)  # fmt: skip
"""Contradictory combinations of options; those of one algorithm are declared with it."""


# ---- a Config from files and flags ---------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> Config:
    """Read a config from a command line: flags override the YAML file, which overrides the defaults.

    With `--resume FOLDER`, its `config.yml` is read; what affects the result may differ only with `--resume_anyway`.

    Args:
        argv: the arguments after the program's name; by default the process's own.

    Raises:
        UserError: any of the options is wrong; one message lists all problems.
        SystemExit: `--help` was given.
    """
    flags, problems = read_flags(DECLARED, argv)
    source = flags.get("config")
    from_file = read_yaml(DECLARED, Path(str(source.value)), problems) if source else {}
    if "resume" in flags:
        return _resumed(flags, from_file, problems)
    return _make_config(overridden(from_file, flags), problems)


def config_of(options: Mapping[str, Any], source: str | None = None, path: str | Path | None = None) -> Config:
    """Make a config from options that are not flags, on top of those of a config file; check them in the same way.

    Args:
        options: name -> value, as a YAML file or a flag would give it.
        source: where the options come from, for messages; None: they are keyword arguments.
        path: the config file; None: there is none.

    Raises:
        UserError: any of the options is wrong; one message lists all problems.
    """
    problems: list[str] = []
    given = {} if path is None else {**read_yaml(DECLARED, Path(path), problems), "config": Given(str(path), "config")}
    for name, value in options.items():
        where = f"{name} ({source})" if source else f"{name}="
        DECLARED.take(given, name.replace("-", "_"), Given(value, where), problems)
    return _make_config(given, problems)


def _resumed(flags: dict[str, Given], from_file: dict[str, Given], problems: list[str]) -> Config:
    folder = Path(str(flags["resume"].value))
    begun = read_yaml(DECLARED, stored_config(folder), problems)
    flags.pop("config", None)
    ran = (folder / "summary.json").is_file()
    before = _make_config(begun, problems, ran)
    after = _make_config(overridden({**begun, **from_file}, flags), problems, ran)
    if after.dataset in DEFINED_BY_PATH and after.data != before.data:
        first = before.data_at_first or before.data
        warnings.warn(f"--resume {folder}: the images in {after.data} have to be those of {first}", stacklevel=3)
        after = after.model_copy(update={"data_at_first": first})
    if before.config_hash == after.config_hash and before.trial_num == after.trial_num:
        return after
    changeable = {name for name, field in OPTIONS.items() if field.json_schema_extra["changeable"]}
    if "auto" in (before.lmbda, after.lmbda):  # such a search steers λ and its threshold, no other does
        changeable.discard("lmbda")
    return accepted(before, after, f"--resume {folder}", changeable)


def _make_config(given: dict[str, Given], problems: list[str], ran: bool = False) -> Config:
    """Validate all values together; a run that has `ran` to its end may be of a version with fewer contradictions.

    Raises:
        UserError: there are problems, found before or now; the message lists all of them.
    """
    # Each run of a sweep is completed and checked by itself, with these flags on top of the file.
    alone = not ("sweep" in given and given["sweep"].value)
    given = {**(_of_ticket(given) if alone else {}), **given}
    if "regularization" in given and given["regularization"].value in (True, "True", "true"):
        warnings.warn(f"{given['regularization'].where}: true names no penalty; none is used", stacklevel=3)
    problems = list(problems)
    config, wrong = validated(Config, given, problems)
    implied = _implied(config, given) if alone else {}
    if "scale_fan" in implied:
        where = f"{given['scale_fan'].where}, {given['prune_rate'].where}"
        warnings.warn(f"{where}: with a prune_rate of −1, not used, scale_fan leaves the fan as it is", stacklevel=3)
    config = config.model_copy(update=implied)
    own = () if any(getattr(config, mode) for mode in LOOKING) else config.algorithm.refused
    for rule in (*CONTRADICTIONS, *own) if alone and not ran else (ONE_MODE,):
        if not wrong.intersection(rule.options) and rule.holds(config):
            where = [given[name].where for name in rule.options if name in given]
            problems.append(f"{', '.join(where) or rule.options[0]}: {rule.text.format(c=config)}")
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError("\n  ".join([f"{count} with the options:", *problems]))
    return config


def _of_ticket(given: Mapping[str, Given]) -> dict[str, Given]:
    """Return the options stored in the ticket file, if one is given and stores them.

    A ticket from someone else must not choose which code runs, so an `arch` from a `.py` file is ignored.
    """
    path = given["ticket"].value if "ticket" in given else None
    told = stored_options(str(path), OF_TICKETS) if path else {}
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
    facts = facts_of(algo := _algorithm_meant(config))
    unread = facts.ignores.options
    if idle := [one.where for name, one in given.items() if name in unread and one.where.startswith("--")]:
        warnings.warn(f"{', '.join(idle)}: not used by {algo}, which {facts.ignores.instead}", stacklevel=3)
    implied |= dict.fromkeys({"teacher"}.intersection(unread))  # none, so that its run need not be there yet
    if algo != config.algo:
        implied["algo"] = algo
        if config.ticket and "algo" in given:
            warnings.warn(f"{given['algo'].where}: not used, as ticket {config.ticket} is trained", stacklevel=3)
    by_rate = "prune_rate" in facts.density_options and facts.learns_mask
    if by_rate and "prune_rate" in given and config.prune_rate != -1 and "target_sparsity" not in given:
        implied["override_prune_rate"] = True
    for name, value in {**facts.defaults, **(facts.auto_defaults if config.lmbda == "auto" else {})}.items():
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
