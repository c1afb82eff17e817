"""`--export`: the networks that runs have trained, in forms for other tools, and what their zeros save."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from data import load_data
from data.loader import Splits
from models import build_model
from models.pretrained import State, load_weights, read_state
from trainers.folders import folder_of, resolved
from trainers.interchange import checked_files
from trainers.pipeline import run_trials
from trainers.savings import Networks, savings, savings_screen
from trainers.tickets import TICKET, read_ticket
from utils.checkpoints import checkpoint_path
from utils.errors import UserError
from utils.files import load_tensors, read_json, write_atomic, write_json
from utils.masks import Ticket, masked_state, remaining, total

if TYPE_CHECKING:
    from args_helper import Config

FILES = {"model.safetensors": "plain state_dict", "model.pt2": "torch.export", "model.onnx": "ONNX"}
FOLDER = "export"


def export_runs(config: Config) -> None:
    """Export the network of every trial of a config into its folder, `export/`; trials that are not finished are run.

    Raises:
        UserError: a run cannot be made, or its network not be exported; then nothing of it is written.
    """
    run_trials(config)
    config = resolved(config)
    for number in range(config.trial_num, config.trial_num + config.num_trial):
        trial = config.model_copy(update={"trial_num": number})
        # Where it was trained does not matter; what it costs is told of the CPU.
        _export(trial.model_copy(update={"device": "cpu"}), folder_of(trial))


def _export(config: Config, folder: Path) -> None:
    data = load_data(config)
    drawn = config.model_copy(update={"pretrained": None, "weights": None})
    net = build_model(drawn, data.spec)
    ticket, _ = read_ticket(folder / TICKET)
    trained = _trained_state(folder, ticket)
    masks = ticket.untrained if trained is None else ticket.masks
    state = masked_state(ticket.state if trained is None else trained, masks)
    load_weights(net, state, folder)
    net.eval().requires_grad_(False)
    images = _test_images(data)
    files, apart = checked_files(net, images)
    # Signed constants deflate to nothing, as no dense network's trained weights do.
    dense = build_model(drawn.model_copy(update={"init": "kaiming_normal"}), data.spec)
    networks = Networks(dense.eval().requires_grad_(False), net, masks, files["model.onnx"])
    report = {
        "network": "untrained" if trained is None else "trained",
        "weights_remaining": remaining(masks),
        "weights_total": total(masks),
        "test_images": len(images),
        "bytes": {**{name: len(content) for name, content in files.items()}, TICKET: (folder / TICKET).stat().st_size},
        "largest_difference_of_logits": apart,
        **savings(networks, images, data.spec.shape),
    }
    for name, content in files.items():
        write_atomic(folder / FOLDER / name, content)
    write_json(folder / FOLDER / "export.json", report)
    print(_screen(folder / FOLDER, report))


def _trained_state(folder: Path, ticket: Ticket) -> State | None:
    """The weights that the run's training ended with; None where nothing was trained.

    Raises:
        UserError: they are no longer there.
    """
    if read_json(folder / "summary.json")["test_acc_after_finetune"] is None:
        return None
    stored = checkpoint_path(folder, ticket.recipe.stage if ticket.recipe else "finetune")
    model = folder / "model.safetensors"
    if stored.is_file():
        return load_tensors(stored)["training"]["network"]
    if model.is_file():
        return read_state(model)
    raise UserError(f"the trained weights are no longer there: neither {stored} nor {model}")


def _test_images(data: Splits) -> Tensor:
    """Real images, normalised as in training: the first batch of an evaluation, up to 100."""
    return next(iter(data.test))[0][:100].contiguous()


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
