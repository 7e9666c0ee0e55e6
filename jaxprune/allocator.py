"""The C allocator of this process, set for training on CPUs."""

from __future__ import annotations

import ctypes
import sys

_ARENA_MAX, _MMAP_THRESHOLD, _TOP_PAD, _TRIM_THRESHOLD = -8, -3, -2, -1  # <malloc.h> of glibc


def keep_freed_memory() -> None:
    """Makes glibc keep what is freed; call it before JAX starts its threads. Elsewhere it does nothing.

    XLA's CPU client allocates the temporaries of a program anew at each call, and glibc by default gives
    blocks of that size back at once: a training step then spends a third of its time in page faults
    (docs/benchmarks.md). Freed memory stays with the process, in blocks of up to 1 GiB.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, 1 << 30)
    mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(_TOP_PAD, 1 << 28)
