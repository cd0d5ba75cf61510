"""What malloc does with freed blocks, measured by the pages that the kernel has to provide."""

import subprocess
import sys

SCRIPT = """
import ctypes, resource, sys, threading
import numpy as np
from clipbatch.stages import memory as heap
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of 4 KiB, wherever it runs
getattr(heap, sys.argv[1])()
faults = []
def batches():
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(int(sys.argv[2]), np.uint8)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=batches)
thread.start()
thread.join()
print(*faults)
"""


def faults(setting: str, size: int) -> list[int]:
    """Pages that each of five blocks of `size` bytes took, made and freed one after the other by a thread."""
    said = subprocess.check_output([sys.executable, "-c", SCRIPT, setting, str(size)], text=True)
    return [int(number) for number in said.split()]


def test_a_batch_reuses_the_pages_of_the_batch_before_it() -> None:
    first, *others = faults("keep_freed", 100 * 2**20)
    assert first > 1_000
    assert max(others) < first / 100


def test_a_giant_goes_back_to_the_system() -> None:
    assert min(faults("keep_freed", 300 * 2**20)) > 1_000


def test_return_freed_returns_whole_images_to_the_system() -> None:
    assert min(faults("return_freed", 2**20)) > 100
