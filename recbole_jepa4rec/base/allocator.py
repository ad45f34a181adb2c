"""Memory for large tensors on a CPU: kept and used again instead of asked for anew each step."""

from __future__ import annotations

import contextlib
import ctypes
import os

import pyarrow

_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # mallopt(3)
_LARGEST = 2**31 - 1


def reuse_freed_memory() -> bool:
    """Let glibc keep what is freed, and torch ask for huge pages.

    By default each tensor above 32 MiB is mapped anew and given back when freed, so that every
    step pays for its page faults: a fifth of an encoder's forward and backward pass (measured, see
    ``benchmarks/README.md``). What is freed stays with the process afterwards.

    Returns:
        Whether it could be set; there is nothing to set where the C library is another.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first allocation
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))


def give_back_freed_memory() -> None:
    """Give what was freed so far back to the system, after work that will not be done again.

    Arrow's own pool, into which files are parsed, is emptied too.
    """
    pyarrow.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
