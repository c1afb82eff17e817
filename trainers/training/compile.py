"""Compilation and precision of a network: how fast a run is, never what it computes.

A compiled network's metrics differ from an uncompiled one's by rounding only, and its runs repeat to the bit.
`prepared` is called once, after the network is built and before the first stage; the stages use the config it returns.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import sys
import time
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from args_helper import Config
from data.load import Splits
from trainers.training.cost import BACKWARD_AND_FORWARD, forward_flops
from trainers.training.stages import stages_of

# Measured: compiling the steps of search and fine-tuning takes a CPU core a minute or two and saves about a third of
# their time. A core does about 5e10 FLOPs a second; half an hour of these pays for it several times over.
WORTHWHILE_FLOPS_A_THREAD = 30 * 60 * 5e10
# On a GPU, compiling saves kernel launches, so the number of steps counts.
WORTHWHILE_STEPS = 10_000
TRITON_CAPABILITY = (7, 0)
# A difference between two precisions that a run would notice.
CLEARLY_FASTER, CLEARLY_SLOWER = 0.85, 1.15


def prepared(config: Config, net: nn.Module, data: Splits) -> Config:
    """Compile the network if the options ask for it or it is worthwhile, and set the precision of products.

    Args:
        config: `compile`, `precision` and the length of the run.
        net: on its device; compiled in place, with its names and parameters unchanged.
        data: what it is trained on.

    Returns:
        The config with `compile` decided.
    """
    allow_tf32(config.precision)
    is_long = _is_worthwhile(config, net, data)
    if config.torch_device == "cpu":
        _advise_of_bf16(config, is_long or config.dry_run)
    asked = config.compile == "on" or (config.compile == "auto" and is_long)
    missing = _missing_compiler(config.torch_device) if asked else None
    if missing:
        warnings.warn(f"networks are not compiled: {missing}", stacklevel=2)
    compiled = asked and not missing
    if compiled:
        print(f"compiling the network for {config.torch_device} (compile: off does without)", flush=True)
        compile_in_place(net, config.torch_device)
    return config.model_copy(update={"compile": "on" if compiled else "off"})


def compile_in_place(net: nn.Module, device: str) -> None:
    """Set a network to compile its passes when they first run; a copy of it is not compiled."""
    # On a GPU, replay the kernels of a step from a recorded CUDA graph: launching them takes the time.
    net.compile(dynamic=False, mode="reduce-overhead" if device.startswith("cuda") else None)


def allow_tf32(precision: str) -> None:
    """Allow TF32 products on a GPU if and only if `precision` is `tf32`; for the whole process."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def _advise_of_bf16(config: Config, is_long: bool) -> None:
    """Say that the run would be faster in the other precision on this processor."""
    is_bf16 = config.precision == "bf16"
    if not is_bf16 and (not is_long or "precision" in config.model_fields_set):
        return
    share = bf16_share()
    if is_bf16 and share > CLEARLY_SLOWER:
        better = "fp32" + (" (resumed: with --resume_anyway)" if config.resume else "")
    elif not is_bf16 and share < CLEARLY_FASTER:
        better = "bf16"
    else:
        return
    print(
        f"on this processor, a convolution in bf16 takes {share:.2g} times as long as in fp32: --precision {better} is "
        "faster",
        flush=True,
    )


def bf16_share() -> float:
    """Measure the time of a convolution in bfloat16 over that in single precision on this processor.

    The features that a processor names do not tell: with AVX512-BF16, some take half the time, and some without access
    to their AMX half as much again.

    Returns:
        The median of five pairs, in the process's number of threads.
    """
    layout = torch.channels_last
    images, weight = torch.ones(32, 32, 16, 16).to(memory_format=layout), torch.ones(32, 32, 3, 3)
    sides = [(images.to(dtype), weight.to(dtype, memory_format=layout)) for dtype in (torch.float32, torch.bfloat16)]

    def seconds(side: tuple[Tensor, Tensor]) -> float:
        started = time.perf_counter()
        with torch.no_grad():
            F.conv2d(*side, padding=1)
        return time.perf_counter() - started

    pairs = [[seconds(side) for side in sides] for _ in range(6)][1:]  # the first pair prepares the convolutions
    return statistics.median(second / first for first, second in pairs)


def _is_worthwhile(config: Config, net: nn.Module, data: Splits) -> bool:
    """Whether compiling pays; depends on the run's length alone, so that the same run always decides alike."""
    epochs = sum(stage.epochs for stage in stages_of(config))
    if config.torch_device != "cpu":
        return epochs * len(data.train) >= WORTHWHILE_STEPS
    images = epochs * len(data.train) * data.train.batch_size
    flops = BACKWARD_AND_FORWARD * forward_flops(net, data.spec.shape)[""] * images
    return flops >= WORTHWHILE_FLOPS_A_THREAD * torch.get_num_threads()


def _missing_compiler(device: str) -> str | None:
    """Say what is missing for compiling, or how a tiny function failed to compile; None if it compiles."""
    if missing := _missing_part(device):
        return missing
    try:
        # Takes about a second, once, besides loading the compiler, which the network needs as well. The result is read
        # back, because a GPU reports errors late.
        torch.compile(lambda numbers: numbers + 1)(torch.ones(8, device=device)).tolist()
    except Exception as error:  # Triton's, the C++ compiler's, the linker's, the driver's: no common type
        return f"a tiny function failed to compile: {' '.join(str(error).split())[:200] or repr(error)}"
    return None


def _missing_part(device: str) -> str | None:
    if device.startswith("cuda"):
        capability = torch.cuda.get_device_capability(device)
        if capability < TRITON_CAPABILITY:
            name = ".".join(map(str, capability))
            return f"the GPU has compute capability {name}, and Triton needs {'.'.join(map(str, TRITON_CAPABILITY))}"
        if not importlib.util.find_spec("triton"):
            return "triton is not installed"
        # Triton for Windows includes a compiler.
        found = sys.platform == "win32" or _is_there("CC", "gcc", "clang")
        return None if found else "there is no C compiler (gcc, clang, $CC)"
    if device == "cpu" and sys.platform != "win32":
        return None if _is_there("CXX", "g++", "clang++") else "there is no C++ compiler (g++, clang++, $CXX)"
    return f"no compiler is known for {device} here"


def _is_there(variable: str, *names: str) -> bool:
    return any(map(shutil.which, filter(None, [os.environ.get(variable, ""), *names])))
