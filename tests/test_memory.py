"""What becomes of freed memory, in a process of its own: page faults and resident memory, as the system counts them."""

import subprocess
import sys

import pytest
from conftest import PROJECT

MEASURE = """
import resource, sys, torch
from utils.memory import keep_freed_memory, peak_memory, reset_peak_memory
cpu, size = torch.device("cpu"), int(sys.argv[2])
keep_freed_memory(sys.argv[1] == "kept")
torch.ones(size + 4096, dtype=torch.uint8)  # and freed; for an aligned block glibc looks for a slightly larger one
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(size, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
used = peak_memory(cpu)
reset_peak_memory(cpu)
print(used - peak_memory(cpu))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the options are glibc's")
# An old glibc keeps up to 2**25 bytes.
@pytest.mark.parametrize(("how", "size"), [("kept", 2**24), ("returned", 2**28)])
def test_kept_memory_is_used_again_without_a_page_fault_and_counts_as_free(how, size):
    command = [sys.executable, "-c", MEASURE, how, str(size)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    faulted, freed = map(int, done.stdout.split())
    assert (faulted > 100) == (how == "returned")
    assert freed > 0.9 * size  # the peak after a reset is without what is freed, kept or not
