"""The allocator keeps what is freed."""

import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
import numpy as np
if "keep" in sys.argv:
    from jaxprune.allocator import keep_freed_memory
    keep_freed_memory()
def use():
    np.ones(64 << 20, np.uint8)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt is what is set")
def test_freed_blocks_are_used_again_without_page_faults():
    def faults(*arguments: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", _FAULTS, *arguments]))

    assert faults("keep") * 10 < faults()
