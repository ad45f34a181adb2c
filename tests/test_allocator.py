"""Freed memory is kept, and nothing fails where the C library is another."""

import ctypes
import subprocess
import sys

from recbole_jepa4rec.base import allocator

STEPS = """
import resource, torch
from recbole_jepa4rec.base.allocator import reuse_freed_memory
assert reuse_freed_memory()
for step in range(12):
    torch.ones(64 * 2**18)
    if step == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_large_tensor_finds_the_memory_of_the_one_before():
    """64 MiB are 16,384 pages; asked for anew, ten tensors would fault for each of them."""
    found = subprocess.run(
        [sys.executable, "-c", STEPS], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) < 16_384


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert allocator.reuse_freed_memory() is False
