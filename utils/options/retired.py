"""Options of earlier versions and of the published code that no longer do anything.

Config files with them can still be read: each gives a warning with the text here, and its value is ignored.
"""

from __future__ import annotations

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
    "transfer_learning": "use pretrained, or arch: torchvision/resnet50 with weights: IMAGENET1K_V1",
    "bias_lastlayer": "use bias, for all layers, or a network of torchvision's, whose last layer has one",
    "load_ckpt": "use pretrained or resume",
    "mode_connect_filename": "its table and plot go to results_dir",
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
"""Option -> what to use instead."""
