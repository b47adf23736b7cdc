"""Memory that is taken and freed all the time stays mapped."""

import platform
import subprocess
import sys

import pytest

CHURN = """
import resource
from tidelog.allocation import keep_freed_memory
keep_freed_memory()
def churn():
    buffers = [bytes([1]) * 262_144 for _ in range(16)]
churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_messages_that_come_and_go_do_not_fault_in_their_pages_again_and_again() -> None:
    faults = int(subprocess.run([sys.executable, "-c", CHURN], check=True, capture_output=True, text=True).stdout)
    assert faults < 50 * 100, "of a thousand pages each time"
