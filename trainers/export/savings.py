"""Measure what zero weights save (FLOPs, bytes) and what they do not (time), compared to the dense network.

All is measured on the CPU, whatever the run was trained on. The FLOPs of the masked network are what a kernel that
skips zeros would need; no kernel here does.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor, nn

from models.state_files import as_safetensors
from trainers.export.formats import onnx_runner
from trainers.training.cost import forward_flops
from utils.errors import counted
from utils.masks import Masks

ROUNDS, SECONDS = 50, 4.0
"""Timed passes per network, and their time limit in seconds (five passes are always timed)."""


def savings(
    dense: nn.Module, masked: nn.Module, masks: Masks, onnx: bytes, images: Tensor, shape: tuple[int, ...]
) -> dict[str, Any]:
    """Measure the dense and the masked network, both in evaluation mode, on the CPU.

    Args:
        dense: without zeros among its weights.
        masked: of the same architecture.
        masks: of `masked`.
        onnx: `masked` as ONNX.
        images: (B, C, H, W) to time them on: first one image, then all.
        shape: (channels, height, width) of an image.

    Returns:
        `flops_an_image` and `deflated_bytes`, each of `dense` and `masked`; `latency`, one row per runtime and number
        of images: medians and quartiles in milliseconds; and `threads`.
    """
    flops = forward_flops(masked, shape)
    spared = sum(
        flops[name.removesuffix(".weight")] * (1.0 - mask.float().mean().item())
        for name, mask in masks.items()
        if name.endswith(".weight")
    )
    deflated = {
        name: len(zlib.compress(as_safetensors(net), 9)) for name, net in (("dense", dense), ("masked", masked))
    }
    runners = {
        "PyTorch": (dense, masked),
        "ONNX Runtime": (onnx_runner(_with_weights(onnx, dense, masks)), onnx_runner(onnx)),
    }
    return {
        "flops_an_image": {"dense": flops[""], "masked": round(flops[""] - spared)},
        "deflated_bytes": deflated,
        "latency": [
            {"by": by, "images": len(part), **_timed(*pair, part)}
            for by, pair in runners.items()
            for part in (images[:1], images)
        ],
        "threads": torch.get_num_threads(),
    }


def _with_weights(content: bytes, dense: nn.Module, masks: Masks) -> bytes:
    """Return the ONNX of a masked network with the weights of the dense one."""
    import onnx

    model, weights = onnx.load_from_string(content), dense.state_dict()
    for one in model.graph.initializer:
        if one.name in weights and one.name in masks:
            one.CopyFrom(onnx.numpy_helper.from_array(weights[one.name].numpy(), one.name))
    return model.SerializeToString()


def _timed(dense: Callable, masked: Callable, images: Tensor) -> dict[str, Any]:
    """Time both alternately, so that other load on the machine hits both; median and quartiles in milliseconds."""
    taken: dict[str, list[float]] = {"dense": [], "masked": []}
    until = time.perf_counter() + SECONDS
    with torch.no_grad():
        for turn in range(ROUNDS + 2):
            if turn > 6 and time.perf_counter() > until:
                break
            for name, run in (("dense", dense), ("masked", masked)):
                started = time.perf_counter()
                run(images)
                if turn > 1:  # the first two are warm-up
                    taken[name].append(1e3 * (time.perf_counter() - started))
    row: dict[str, Any] = {"n": len(taken["dense"])}
    for name, values in taken.items():
        low, middle, high = quantiles(values)
        row |= {f"{name}_ms": middle, f"{name}_ms_low": low, f"{name}_ms_high": high}
    low, middle, high = quantiles([slow / fast for slow, fast in zip(taken["dense"], taken["masked"])])
    return {**row, "ratio": middle, "ratio_low": low, "ratio_high": high}


def savings_screen(report: dict[str, Any]) -> list[str]:
    """Format the results of `savings` and the file sizes as lines for the screen."""
    flops, deflated = report["flops_an_image"], report["deflated_bytes"]
    lines = [
        "  what the zeros save           dense      masked",
        f"    FLOPs an image         {_short(flops['dense']):>10}  {_short(flops['masked']):>10}  "
        "if zeros were skipped, which no kernel here does",
        f"    state_dict, deflated {deflated['dense'] / 1e3:>9,.0f} kB {deflated['masked'] / 1e3:>8,.0f} kB  "
        f"(the ticket: {report['bytes']['ticket.safetensors'] / 1e3:,.1f} kB)",
        "  what they do not: time        dense      masked  dense / masked",
    ]
    for row in report["latency"]:
        name = f"{row['by']}, {counted(row['images'], 'image')}"
        ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"
        lines.append(f"    {name:<24} {row['dense_ms']:>6.2f} ms {row['masked_ms']:>8.2f} ms  {ratio}")
    rounds, threads = min(row["n"] for row in report["latency"]), counted(report["threads"], "CPU thread")
    return [*lines, f"    medians (middle half) of {rounds} turns or more, on {threads}"]


def _short(flops: int) -> str:
    """Format a count in millions."""
    return f"{flops / 1e6:,.2f} M"
