"""Convert a network to a plain state_dict, torch.export and ONNX, and compare these to the network.

A format is accepted only if what was written, read back, gives the network's logits. To add one, add its bytes and its
function from images to logits in `checked_files`, and its name to `FILES` in `trainers.export.export`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor, nn

from models.state_files import as_safetensors
from utils.errors import UserError

TOLERANCE = 1e-4
"""Largest allowed difference of logits, as a fraction of the largest logit: other kernels add in another order."""


def checked_files(net: nn.Module, images: Tensor) -> tuple[dict[str, bytes], dict[str, float]]:
    """Convert the network to every format, and measure how far the logits of each, read back, differ from its own.

    Args:
        net: plain, in evaluation mode, on the CPU.
        images: (B, C, H, W); every format takes any number of such images.

    Returns:
        File name -> content, and file name -> the largest difference of a logit.

    Raises:
        UserError: a package is missing, the network cannot be exported, or a format gives other logits.
    """
    # Two images: torch.export takes a dimension of 1 for a constant.
    example = images[:1].expand(2, *images.shape[1:]).contiguous()
    program = _exported(net, example)
    archive = io.BytesIO()
    torch.export.save(program, archive)
    files = {
        "model.safetensors": as_safetensors(net),
        "model.pt2": archive.getvalue(),
        "model.onnx": _as_onnx(program, example),
    }
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "model.pt2": torch.export.load(io.BytesIO(files["model.pt2"])).module(),
        "model.onnx": onnx_runner(files["model.onnx"]),
    }
    return files, {name: _difference(name, form, net, images) for name, form in forms.items()}


def _exported(net: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # a user's network may contain code that cannot be traced
        raise UserError(f"torch.export cannot export the network: {_first_line(error)}") from error


def _as_onnx(program: torch.export.ExportedProgram, example: Tensor) -> bytes:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(package)
        except ImportError as error:
            raise UserError(f"--export needs the package {package}: pip install -r requirements.txt") from error
    try:
        with warnings.catch_warnings():  # about the exporter's own code
            warnings.simplefilter("ignore")
            written = torch.onnx.export(
                program, (example,), input_names=["images"], output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, verbose=False,
            )  # fmt: skip
    except Exception as error:
        raise UserError(f"the network cannot be written as ONNX: {_first_line(error)}") from error
    return written.model_proto.SerializeToString()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def onnx_runner(content: bytes) -> Callable[[Tensor], Tensor]:
    """Return a function from images to logits: ONNX Runtime on as many threads as PyTorch uses.

    Args:
        content: an ONNX file with the input `images` (B, C, H, W) float32 and the output `logits` (B, classes).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _difference(name: str, form: Callable[[Tensor], Tensor], net: nn.Module, images: Tensor) -> float:
    """Raises: UserError: the logits differ, for all images or for the first one alone."""
    expected = net(images)
    largest = max(float((form(part) - expected[: len(part)]).abs().max()) for part in (images, images[:1]))
    allowed = TOLERANCE * float(expected.abs().max())
    if not largest <= allowed:
        raise UserError(
            f"{name} would compute other logits than the network: they differ by {largest:.3g}, where {allowed:.3g} is "
            "allowed; nothing was written"
        )
    return largest
