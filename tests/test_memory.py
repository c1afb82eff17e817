"""What becomes of freed memory, in a process of its own: page faults and resident memory, as the system counts them."""

import subprocess
import sys

import pytest
from conftest import PROJECT

SIZE = 2**24  # bytes; below what an old glibc keeps
MEASURE = f"""
import resource, sys, torch
from utils.memory import keep_freed_memory, peak_memory, reset_peak_memory
cpu = torch.device("cpu")
keep_freed_memory(sys.argv[1] == "kept")
torch.ones({SIZE}, dtype=torch.uint8)  # and freed
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones({SIZE}, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
used = peak_memory(cpu)
reset_peak_memory(cpu)
print(used - peak_memory(cpu))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the options are glibc's")
@pytest.mark.parametrize(("how", "faults"), [("kept", False), ("returned", True)])
def test_kept_memory_is_used_again_without_a_page_fault_and_counts_as_free(how, faults):
    done = subprocess.run([sys.executable, "-c", MEASURE, how], cwd=PROJECT, capture_output=True, text=True, check=True)
    faulted, freed = map(int, done.stdout.split())
    assert (faulted > 100) == faults
    assert freed > 0.9 * SIZE  # the peak after a reset is without what is freed, kept or not
