"""Networks for other tools: what the forms compute, what is refused, and what the zeros are said to save."""

import io
import json
import shutil

import onnxruntime
import pytest
import torch
from conftest import SMALL, raising, summary_of
from safetensors.torch import load_file
from torch import nn
from toys import complaint

from args_helper import parse_args
from data.load import load_data
from models.build import build_model
from trainers.export import formats as interchange
from trainers.export.formats import checked_files
from trainers.export.savings import savings
from trainers.tickets.file import read_ticket
from trainers.training.loop import evaluate


def small():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    net(torch.randn(50, 1, 2, 3))
    return net.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """Times of which nothing is concluded need not be taken for long."""
    monkeypatch.setattr("trainers.export.savings.SECONDS", 0.1)


def test_a_finished_run_is_exported_as_it_was_trained(finished, tmp_path, done, refusal):
    run = shutil.copytree(finished.parent, tmp_path / "results") / "trial_1"
    words = ("--resume", run, "--export", "--log_dir", tmp_path / "runs")
    out = done(*words).out
    assert "trained network of" in out and "model.onnx" in out
    summary, report = summary_of(run), json.loads((run / "export" / "export.json").read_text())
    config = parse_args(["--config", str(run / "config.yml")])
    net, data = build_model(config), load_data(config)
    net.load_state_dict(load_file(run / "export" / "model.safetensors"))
    assert evaluate(net, data.test) == pytest.approx(summary["test_acc_after_finetune"])
    masks = read_ticket(run / "ticket.safetensors")[0].masks
    assert all((net.get_parameter(name)[~mask] == 0).all() for name, mask in masks.items())

    images, _ = next(iter(data.test))
    session = onnxruntime.InferenceSession(run / "export" / "model.onnx")
    logits = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    for form in (logits, torch.export.load(run / "export" / "model.pt2").module()(images)):
        assert torch.allclose(form, net.eval()(images), atol=1e-4)
    assert report["weights_remaining"] == summary["weights_remaining"]
    assert report["bytes"]["model.onnx"] == (run / "export" / "model.onnx").stat().st_size
    timed = {(by, count) for by in ("PyTorch", "ONNX Runtime") for count in (1, 100)}
    assert {(row["by"], row["images"]) for row in report["latency"]} == timed

    shutil.copy(run / "export" / "model.safetensors", run / "model.safetensors")  # as --save_model would leave it
    (run / "checkpoints" / "finetune.pt").write_bytes(b"damaged")
    done(*words)
    (run / "model.safetensors").unlink()
    (run / "checkpoints" / "finetune.pt").unlink()
    assert "the trained weights are no longer there" in refusal(*words)


def test_what_computes_something_else_is_not_written(monkeypatch):
    real = interchange.onnx_runner
    monkeypatch.setattr(interchange, "onnx_runner", lambda content: lambda images: real(content)(images) * 1.001)
    assert "model.onnx would compute other logits" in complaint(checked_files, small(), torch.randn(5, 1, 2, 3))


def test_a_missing_package_and_what_cannot_be_traced_are_told(monkeypatch):
    class Branching(nn.Module):
        def forward(self, images):
            return images if images.sum() > 0 else -images

    assert "torch.export cannot export the network" in complaint(checked_files, Branching(), torch.randn(5, 3))
    with monkeypatch.context() as patched:
        patched.setattr(torch.export, "export", raising(AssertionError()))
        assert "export the network: AssertionError" in complaint(checked_files, small(), torch.randn(5, 1, 2, 3))
    monkeypatch.setattr(interchange, "import_module", raising(ImportError("onnx")))
    assert "needs the package onnx: pip install" in complaint(checked_files, small(), torch.randn(5, 1, 2, 3))


def test_savings_by_hand():
    dense, masked, images = small(), small(), torch.randn(5, 1, 2, 3)
    masks = {"1.weight": torch.zeros(4, 6) > 0, "4.weight": torch.eye(3, 4) > 0, "4.bias": torch.ones(3) > 0}
    masked[1].weight *= masks["1.weight"]
    files, apart = checked_files(masked, images)
    assert set(apart) == {"model.pt2", "model.onnx"} and max(apart.values()) < 1e-5
    found = savings(dense, masked, masks, files["model.onnx"], images, (1, 2, 3))
    assert found["flops_an_image"] == {"dense": 2 * (24 + 12), "masked": 2 * 3}
    assert found["deflated_bytes"]["masked"] < found["deflated_bytes"]["dense"]
    assert all(row["n"] >= 5 and row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in found["latency"])
    assert torch.equal(torch.export.load(io.BytesIO(files["model.pt2"])).module()(images[:3]), masked(images[:3]))


def test_an_untrained_ticket_is_exported_as_the_gem_it_is(done, places, trial):
    words = ["--algo", "random", "--arch", "FC", "--hidden_size", 5, "--skip_fine_tune", "--export", *places]
    assert "the untrained network of" in done(*SMALL, *words).out
    run = trial()
    state, (ticket, _) = load_file(run / "export" / "model.safetensors"), read_ticket(run / "ticket.safetensors")
    assert all(torch.equal(state[name], ticket.state[name] * mask) for name, mask in ticket.masks.items())
