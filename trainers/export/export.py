"""`--export`: write trained networks in formats for other tools, and report what their zeros save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from args_helper import Config
from data.load import load_data
from models.build import build_model
from trainers.export.formats import checked_files
from trainers.export.savings import savings, savings_screen
from trainers.pipeline import run_trials
from trainers.results.run_folder import folder_of, resolved, trial_of
from trainers.tickets.file import TICKET
from trainers.tickets.trained import trained
from utils.files import write_atomic, write_json
from utils.masks import remaining, total

FILES = {"model.safetensors": "plain state_dict", "model.pt2": "torch.export", "model.onnx": "ONNX"}
FOLDER = "export"


def export_runs(config: Config) -> None:
    """Export the network of every trial of a config into the trial's `export/`; unfinished trials are run first.

    Each gets `model.safetensors`, `model.pt2`, `model.onnx` and, with what was measured, `export.json`.

    Args:
        config: as of a run; its `results_dir` and `name`, or `resume`, give the folders.

    Raises:
        UserError: a run fails, or its network cannot be exported; then none of its files is written.
    """
    run_trials(config)
    config = resolved(config)  # `run_trials` keeps what it decided to itself
    for number in config.trials:
        trial = trial_of(config, number)
        # The device of the training does not matter here: costs are measured on the CPU.
        _export(trial.model_copy(update={"device": "cpu", "decode_on": "cpu"}), folder_of(trial))


def _export(config: Config, folder: Path) -> None:
    data = load_data(config)
    net, masks, is_trained = trained(folder, config, data.spec)
    images = next(iter(data.test))[0][:100].contiguous()  # normalised as in training
    files, apart = checked_files(net, images)
    # Not signed constants: they deflate to almost nothing, unlike the trained weights of a dense network.
    drawn = {"init": "kaiming_normal", "pretrained": None, "weights": None}
    dense = build_model(config.model_copy(update=drawn), data.spec).eval().requires_grad_(False)
    report = {
        "network": "trained" if is_trained else "untrained",
        "weights_remaining": remaining(masks),
        "weights_total": total(masks),
        "test_images": len(images),
        "bytes": {**{name: len(content) for name, content in files.items()}, TICKET: (folder / TICKET).stat().st_size},
        "largest_difference_of_logits": apart,
        **savings(dense, net, masks, files["model.onnx"], images, data.spec.shape),
    }
    for name, content in files.items():
        write_atomic(folder / FOLDER / name, content)
    write_json(folder / FOLDER / "export.json", report)
    print(_screen(folder / FOLDER, report))


def _screen(folder: Path, report: dict[str, Any]) -> str:
    kept, whole = report["weights_remaining"], report["weights_total"]
    lines = [
        f"{folder}: the {report['network']} network of {kept:,} weights ({100 * kept / whole:.2f}%), compared on "
        f"{report['test_images']} test images"
    ]
    for name, label in FILES.items():
        apart = report["largest_difference_of_logits"].get(name)
        told = "" if apart is None else f"; logits differ by {apart:.1e} at most"
        lines.append(f"  {name:<20} {report['bytes'][name] / 1e3:>8,.1f} kB  {label}{told}")
    return "\n".join([*lines, *savings_screen(report)])
